"""Segments what a text names in an image, or answers a question about the image and about regions drawn on it.

    python tools/predict.py runs/quickstart/export --image photo.jpg --text "red cup" --text chairs --out out
    python tools/predict.py runs/quickstart/export --image photo.jpg --box 10,20,80,90 --ask "What is it?" --out out
    python tools/predict.py runs/quickstart/export --image photo.jpg --point 40,60 --mask cup.png \\
        --ask "Is <Prompt0> larger than <Prompt1>?" --text "the object nearest to <Prompt0>" --out outputs/photo

Regions (--box, --point, --scribble, --mask) are <Prompt0>, <Prompt1>, ... in the order of the command line. The tool
writes an overlay with masks and regions, one PNG per mask, and a JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.command import tool
from pixel_sail.data.image import load_image
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.regions import Box, Points, Region, Scribble, draw_regions
from pixel_sail.devices import choose_device
from pixel_sail.durable import write_json
from pixel_sail.errors import UserError
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.serve.visualize import draw_answers, save_png
from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import RLE
from pixel_sail.writable import check_writable


@tool
def main() -> None:
    arguments = _parse()
    choose_device(arguments.device)
    check_writable(arguments.out)
    image = load_image(arguments.image, orient=True)  # a user's photo is turned as its EXIF orientation says
    regions = [_region(kind, text) for kind, text in arguments.regions]
    drawn = draw_regions(regions, (image.height, image.width))
    predictor = Predictor.from_pretrained(arguments.checkpoint, arguments.device, arguments.precision)
    answers = predictor.segment(image, arguments.text, regions) if arguments.text else []
    answers += predictor.chat(image, arguments.ask, regions) if arguments.ask else []
    texts = [*arguments.text, *arguments.ask]
    for path in write(arguments.out, arguments.image, image, texts, answers, list(drawn.values())):
        print(path)
    for text, answer in zip(texts, answers, strict=True):
        print(f"{text}  ->  {answer.text}")


class _InOrder(argparse.Action):
    """Collects regions of all kinds in one list, in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.regions = [*namespace.regions, (self.dest, values)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="an export folder")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--text", action="append", default=[], help="what to segment; may be repeated")
    parser.add_argument(
        "--ask", action="append", default=[], help="a question; each <region> in it stands for the next region"
    )
    parser.add_argument("--box", action=_InOrder, metavar="X0,Y0,X1,Y1", help="pixels; may be repeated, as the others")
    parser.add_argument("--point", action=_InOrder, metavar="X,Y[,X,Y...]", help="one region of one or more points")
    parser.add_argument("--scribble", action=_InOrder, metavar="X,Y,X,Y[,...]", help="a line through the points")
    parser.add_argument(
        "--mask",
        action=_InOrder,
        metavar="FILE",
        help="an image: its pixels that are neither black nor transparent",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.set_defaults(regions=[])
    arguments = parser.parse_args()
    if not arguments.text and not arguments.ask:
        parser.error("say what to segment with --text, or ask something with --ask")
    if len(arguments.regions) > MAX_PROMPTS:
        parser.error(f"{len(arguments.regions)} regions; there can be at most {MAX_PROMPTS}")
    return arguments


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
    """Writes `<stem>_overlay.png`, `<stem>_<answer>_<mask>.png` (0 and 255) and `<stem>.json`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    written, records = [out / f"{source.stem}_overlay.png"], []
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        files = [out / f"{source.stem}_{i}_{j}.png" for j in range(len(answer.masks))]
        for file, mask in zip(files, answer.masks, strict=True):
            save_png(Image.fromarray(mask.astype(np.uint8) * 255), file)
        segmentations = [encode_mask(mask) for mask in answer.masks]
        names = [file.name for file in files]
        records.append({"asked": text, "text": answer.text, "masks": names, "segmentations": segmentations})
        written += files
    captions = [f"{text}: {answer.text}" for text, answer in zip(texts, answers, strict=True)]
    outlined = {k: decode_mask(region) for k, region in enumerate(regions)}
    save_png(draw_answers(image, outlined, captions, [answer.masks for answer in answers]), written[0])
    path = out / f"{source.stem}.json"
    record = {"image": str(source), "size_hw": [image.height, image.width], "regions": regions, "answers": records}
    write_json(path, record, indent=2)
    return [*written, path]


if __name__ == "__main__":
    main()
