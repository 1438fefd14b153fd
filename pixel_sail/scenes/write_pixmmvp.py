"""The files of PixMMVP, and questions of the same kinds about the training images."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.templates import CHOOSE, choose
from pixel_sail.scenes.formats import conversation, info, training, write_compact_json
from pixel_sail.scenes.image_pairs import Pair, PairImage, draw_pair
from pixel_sail.scenes.two_option_questions import TwoOptions, choose_two_option_questions
from pixel_sail.scenes.types import ImageRecord, Request, Rng, Turn

PAIRS = 150
_IMAGES_PER_PAIR = 20  # of a small dataset; from 3,000 images on there are all pairs
_LETTERS = ("a", "b")


def write_pixmmvp_files(out: Path, records: list[ImageRecord], request: Request) -> None:
    choices = [_conversation(record, request["seed"]) for record in training(records)]
    write_compact_json(out / "llava/choices.json", choices)
    folder = out / "pixmmvp"
    (folder / "MMVP Images").mkdir(parents=True)
    questions, expressions = ["Index,Question,Options,Correct Answer"], ["Index, Object"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(min(PAIRS, max(2, request["images"] // _IMAGES_PER_PAIR))):
        pair = draw_pair(number, request["seed"], request["long_side_px"], request.get("style", "day"))
        for image, right in zip(pair.images, pair.rights, strict=True):
            index = len(images) + 1
            questions.append(_question_line(index, pair, right))
            expressions.append(f"{index}, {pair.expression}")
            images.append(_save(folder, index, image))
            annotations += _annotations(image, index, len(annotations))
    (folder / "Questions.csv").write_text("\n".join(questions) + "\n", encoding="utf-8")
    (folder / "Objects.csv").write_text("\n".join(expressions) + "\n", encoding="utf-8")
    values = {"info": info(request), "images": images, "annotations": annotations, "licenses": [], "categories": []}
    write_compact_json(folder / "Segmentations.json", values)


def _question_line(index: int, pair: Pair, right: int) -> str:
    options = " ".join(f"({letter}) {text}" for letter, text in zip(_LETTERS, pair.options, strict=True))
    question = f'"{pair.question}"' if "," in pair.question else pair.question
    return f"{index},{question},{options},({_LETTERS[right]})"


def _save(folder: Path, index: int, image: PairImage) -> dict[str, Any]:
    """Write the image; return its entry."""
    name, (height, width) = f"{index}.jpg", image.pixels.shape[:2]
    Image.fromarray(image.pixels).save(folder / "MMVP Images" / name, quality=92, subsampling=0)
    return {"id": index, "width": width, "height": height, "file_name": name, "license": 0, "date_captured": ""}


def _annotations(image: PairImage, index: int, before: int) -> list[dict[str, Any]]:
    """An annotation for each polygon, as in the published files; their ids go on after `before`."""
    annotations = []
    for number, polygon in enumerate(image.polygons, start=before + 1):
        xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
        bbox = [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))]
        area = abs(float((xs * np.roll(ys, -1) - ys * np.roll(xs, -1)).sum())) / 2
        annotations.append(
            {"segmentation": [polygon], "area": area, "bbox": bbox, "iscrowd": 0, "id": number, "image_id": index}
            | {"category_id": None}
        )
    return annotations


def _conversation(record: ImageRecord, seed: int) -> dict[str, Any]:
    """An entry in LLaVA's format."""
    image = record.image
    rng = np.random.default_rng([seed, image["id"] - 1, 5])
    questions = choose_two_option_questions(record.objects, image["width"], rng)
    return {
        "id": f"{Path(image['file_name']).stem}_choices",
        "image": f"train2014/{image['file_name']}",
        "conversations": conversation([_turn(question, rng) for question in questions], "<image>\n"),
    }


def _turn(question: TwoOptions, rng: Rng) -> Turn:
    text = choose(question.question, question.options, CHOOSE[rng.integers(len(CHOOSE))])
    return text, question.options[question.right]
