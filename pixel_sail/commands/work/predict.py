"""What `pixel-sail predict` does: reads the regions, asks the model, writes images and JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.regions import Box, Points, Region, Scribble, draw_regions, name_regions, names_region
from pixel_sail.devices import choose_device
from pixel_sail.durable import write_json
from pixel_sail.errors import UserError
from pixel_sail.folders.find import find_export
from pixel_sail.serve.predictor import Answer, Chat, Predictor
from pixel_sail.serve.visualize import draw_answers, save_png
from pixel_sail.types import RLE, BadSample
from pixel_sail.weights.lineage import note_untrained_zoom
from pixel_sail.writable import check_writable

IMAGES_AT_ONCE = 8
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def run(arguments: argparse.Namespace) -> None:
    choose_device(arguments.device)
    check_writable(arguments.out)
    files = image_files(arguments.image)
    if arguments.zoom and arguments.instances:
        raise UserError("--zoom looks again at one object, and --instances finds several: give one of them")
    if arguments.regions and len(files) > 1:
        raise UserError(f"regions are drawn on one image, and there are {len(files)}: ask about each in a call")
    regions = [_region(kind, text) for kind, text in arguments.regions]
    names = _names(files)
    if len(files) == 1:
        _open(files[0])  # before the model, which takes longer
    folder = find_export(arguments.checkpoint)
    predictor = Predictor.from_pretrained(folder, arguments.device, arguments.precision)
    predictor.set_min_presence(arguments.min_presence)
    if arguments.zoom:
        note_untrained_zoom(folder)
    asked = [name_regions(text, range(len(regions))) for text in arguments.ask]
    questions = [*predictor.segment_questions(arguments.text, arguments.instances), *asked]
    if regions and not any(map(names_region, questions)):
        print("no --text names a region, so none is shown to the model: write <Prompt0> for the first", file=sys.stderr)
    texts, unread = [*arguments.text, *arguments.ask], []
    apart = len(arguments.text) if arguments.instances else 0
    sampling = predictor.instance_sampling() if apart else None
    for start in range(0, len(files), IMAGES_AT_ONCE):
        opened = {}
        for file in files[start : start + IMAGES_AT_ONCE]:
            try:
                opened[file] = _open(file)
            except BadSample as error:
                if len(files) == 1:
                    raise
                unread.append(file)
                print(f"not read: {error}", file=sys.stderr)
        chats = [Chat(image, questions, regions, only_named=True) for image in opened.values()]
        answered = (
            predictor.zoomed(chats, arguments.soft)
            if arguments.zoom
            else predictor.chat_many(chats, sampling, arguments.soft)
        )
        for (file, image), answers in zip(opened.items(), answered, strict=True):
            answers[:apart] = [answer.without_repeats() for answer in answers[:apart]]
            drawn = list(draw_regions(regions, (image.height, image.width)).values())
            for path in write(arguments.out, names[file], file, image, texts, answers, drawn, apart):
                print(path)
            for text, answer in zip(texts, answers, strict=True):
                print(f"{text}  ->  {_said(answer)}{_scores(answer)}")
    if unread:
        raise UserError(f"{len(unread)} of {len(files)} images could not be read; the others are in {arguments.out}")


def _said(answer: Answer) -> str:
    """The text, and in words that its masks have no pixel."""
    nothing = bool(answer.masks) and not any(mask.any() for mask in answer.masks)
    return f"{answer.text} (nothing found)" if nothing else answer.text


def _scores(answer: Answer) -> str:
    """What is known of an answer, for the console; nothing without a score head."""
    if answer.presence is None:
        return ""
    scores = "".join(f", score {score:.2f}" for score in answer.scores or ())
    return f"  (presence {answer.presence:.2f}{scores})"


def _instance(text: str, answer: Answer, number: int) -> str:
    """What an instance is called in the overlay: "mug 2, score 0.81"."""
    score = "" if answer.scores is None else f", score {answer.scores[number]:.2f}"
    return f"{text} {number + 1}{score}"


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files at `paths`, each once; of a folder those that are named as images, sorted. Raises UserError."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"{path} has no images: no file of it ends in .jpg, .png or another image suffix")
        found.update(dict.fromkeys(inside))
    return list(found)


def _open(file: Path) -> Image.Image:
    return load_image(file, orient=True)  # a user's photo is turned as its EXIF orientation says


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """What the output of each file is called: its name without suffix, or with it if two would be called the same."""
    if len({file.stem for file in files}) == len(files):
        return {file: file.stem for file in files}
    names = [file.name for file in files]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UserError(f"two images are called {repeated}: give each a call and an --out of its own")
    return dict(zip(files, names, strict=True))


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
    out: Path,
    name: str,
    source: Path,
    image: Image.Image,
    texts: list[str],
    answers: list[Answer],
    regions: list[RLE],
    apart: int = 0,
) -> list[Path]:
    """Writes `<name>_overlay.png`, `<name>_<answer>_<mask>.png` (0 and 255) and `<name>.json`; returns their paths.

    And `<name>_<answer>_<mask>_soft.png`, the probabilities 0..1 as 0..255, if the answers have them. Each mask of the
    first `apart` answers has a colour of its own in the overlay.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, records = [out / f"{name}_overlay.png"], []
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        files = [out / f"{name}_{i}_{j}.png" for j in range(len(answer.masks))]
        for file, mask in zip(files, answer.masks, strict=True):
            save_png(Image.fromarray(mask.astype(np.uint8) * 255), file)
        segmentations = [encode_mask(mask) for mask in answer.masks]
        names = [file.name for file in files]
        record = {"asked": text, "text": answer.text, "masks": names, "segmentations": segmentations}
        if answer.presence is not None:
            record |= {"presence": answer.presence, "scores": answer.scores}
        for j, probabilities in enumerate(answer.probabilities or ()):
            files.append(out / f"{name}_{i}_{j}_soft.png")
            save_png(Image.fromarray((probabilities * 255).round().astype(np.uint8)), files[-1])
        records.append(record)
        written += files
    shown: list[tuple[str, list[np.ndarray]]] = []  # caption, and the masks of its colour
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if i < apart and answer.masks:
            shown += [(_instance(text, answer, j), [mask]) for j, mask in enumerate(answer.masks)]
        else:
            shown.append((f"{text}: {_said(answer)}", answer.masks))
    captions, masks = zip(*shown, strict=True)
    outlined = {k: decode_mask(region) for k, region in enumerate(regions)}
    save_png(draw_answers(image, outlined, captions, masks), written[0])
    path = out / f"{name}.json"
    record = {"image": str(source), "size_hw": [image.height, image.width], "regions": regions, "answers": records}
    write_json(path, record, indent=2)
    return [*written, path]
