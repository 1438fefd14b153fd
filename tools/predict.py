"""Segments what a text says in a picture: writes the overlay, one PNG a mask, and a JSON file.

python tools/predict.py runs/quickstart/export --image photo.jpg --text "red cup" --text "chairs" --out outputs/photo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate.referring import Answer
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import overlay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="an export folder")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--text", action="append", required=True, help="what to segment; may be repeated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    arguments = parser.parse_args()
    try:
        image = load_image(arguments.image, orient=True)  # a user's photo is taken as it is seen
        predictor = Predictor.from_pretrained(arguments.checkpoint, arguments.device, arguments.precision)
        answers = predictor.segment(image, arguments.text)
    except (ValueError, FileNotFoundError) as error:  # ValueError: picture, weights or text, each with its message
        raise SystemExit(f"error: {error}") from None
    for path in write(arguments.out, arguments.image, image, arguments.text, answers):
        print(path)


def write(out: Path, source: Path, image: Image.Image, texts: list[str], answers: list[Answer]) -> list[Path]:
    """`<stem>_overlay.png`, `<stem>_<text>_<mask>.png` (0 and 255) and `<stem>.json`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written, records = [out / f"{source.stem}_overlay.png"], []
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        files = [out / f"{source.stem}_{i}_{j}.png" for j in range(len(answer.masks))]
        for file, mask in zip(files, answer.masks, strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        segmentations = [encode_mask(mask) for mask in answer.masks]
        names = [file.name for file in files]
        records.append({"expression": text, "text": answer.text, "masks": names, "segmentations": segmentations})
        written += files
    united = [np.logical_or.reduce([np.zeros((image.height, image.width), bool), *a.masks]) for a in answers]
    captions = [f"{text}: {answer.text}" for text, answer in zip(texts, answers, strict=True)]
    overlay(image, united, captions).save(written[0])
    path = out / f"{source.stem}.json"
    record = {"image": str(source), "size_hw": [image.height, image.width], "answers": records}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return [*written, path]


if __name__ == "__main__":
    main()
