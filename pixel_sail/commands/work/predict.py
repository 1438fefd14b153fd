"""What `pixel-sail predict` does: reads the regions, asks the model, writes images and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.regions import Box, Points, Region, Scribble, draw_regions
from pixel_sail.devices import choose_device
from pixel_sail.durable import write_json
from pixel_sail.errors import UserError
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.serve.visualize import draw_answers, save_png
from pixel_sail.types import RLE
from pixel_sail.writable import check_writable


def run(arguments: argparse.Namespace) -> None:
    choose_device(arguments.device)
    check_writable(arguments.out)
    image = load_image(arguments.image, orient=True)  # a user's photo is turned as its EXIF orientation says
    regions = [_region(kind, text) for kind, text in arguments.regions]
    drawn = draw_regions(regions, (image.height, image.width))
    predictor = Predictor.from_pretrained(arguments.checkpoint, arguments.device, arguments.precision)
    soft = arguments.soft
    answers = predictor.segment(image, arguments.text, regions, soft=soft) if arguments.text else []
    answers += predictor.chat(image, arguments.ask, regions, soft=soft) if arguments.ask else []
    texts = [*arguments.text, *arguments.ask]
    for path in write(arguments.out, arguments.image, image, texts, answers, list(drawn.values())):
        print(path)
    for text, answer in zip(texts, answers, strict=True):
        print(f"{text}  ->  {answer.text}{_scores(answer)}")


def _scores(answer: Answer) -> str:
    """What is known of an answer, for the console; nothing without a score head."""
    if answer.presence is None:
        return ""
    scores = "".join(f", score {score:.2f}" for score in answer.scores or ())
    return f"  (presence {answer.presence:.2f}{scores})"


def _region(kind: str, text: str) -> Region:
    if kind == "mask":
        return read_mask_file(Path(text), f"--mask {text}", orient=True)
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--{kind} {text}: write pixels as numbers, separated by commas") from None
    if kind == "box":
        if len(numbers) != 4:
            raise UserError(f"--box {text}: a box is x0,y0,x1,y1")
        return Box(*numbers)
    if len(numbers) % 2:
        raise UserError(f"--{kind} {text}: points are x,y,x,y...")
    points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return Points(points) if kind == "point" else Scribble(points)


def write(
    out: Path, source: Path, image: Image.Image, texts: list[str], answers: list[Answer], regions: list[RLE]
) -> list[Path]:
    """Writes `<stem>_overlay.png`, `<stem>_<answer>_<mask>.png` (0 and 255) and `<stem>.json`; returns their paths.

    And `<stem>_<answer>_<mask>_soft.png`, the probabilities 0..1 as 0..255, if the answers have them.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, records = [out / f"{source.stem}_overlay.png"], []
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        files = [out / f"{source.stem}_{i}_{j}.png" for j in range(len(answer.masks))]
        for file, mask in zip(files, answer.masks, strict=True):
            save_png(Image.fromarray(mask.astype(np.uint8) * 255), file)
        segmentations = [encode_mask(mask) for mask in answer.masks]
        names = [file.name for file in files]
        record = {"asked": text, "text": answer.text, "masks": names, "segmentations": segmentations}
        if answer.presence is not None:
            record |= {"presence": answer.presence, "scores": answer.scores}
        for j, probabilities in enumerate(answer.probabilities or ()):
            files.append(out / f"{source.stem}_{i}_{j}_soft.png")
            save_png(Image.fromarray((probabilities * 255).round().astype(np.uint8)), files[-1])
        records.append(record)
        written += files
    captions = [f"{text}: {answer.text}" for text, answer in zip(texts, answers, strict=True)]
    outlined = {k: decode_mask(region) for k, region in enumerate(regions)}
    save_png(draw_answers(image, outlined, captions, [answer.masks for answer in answers]), written[0])
    path = out / f"{source.stem}.json"
    record = {"image": str(source), "size_hw": [image.height, image.width], "regions": regions, "answers": records}
    write_json(path, record, indent=2)
    return [*written, path]
