"""The files of PixMMVP, and questions of the same kinds about the training images."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.templates import CHOOSE, choose
from pixel_sail.scenes.pair import Member, draw_pair
from pixel_sail.scenes.two_options import Choice, choices_about
from pixel_sail.scenes.write_regions import write_json

Record = dict[str, Any]

PAIRS = 150
_IMAGES_PER_PAIR = 20  # of a small dataset; from 3,000 images on there are all pairs
_LETTERS = ("a", "b")


def write_pixmmvp_files(out: Path, records: list[Record], request: dict[str, Any]) -> None:
    """``records`` come from ``make_image`` in the order of their index."""
    train = [record for record in records if record["split"] == "train"]
    write_json(out / "llava/choices.json", [_conversation(record, request["seed"]) for record in train])
    folder = out / "pixmmvp"
    (folder / "MMVP Images").mkdir(parents=True)
    questions, expressions = ["Index,Question,Options,Correct Answer"], ["Index, Object"]
    images: list[Record] = []
    annotations: list[Record] = []
    for number in range(min(PAIRS, max(2, request["images"] // _IMAGES_PER_PAIR))):
        pair = draw_pair(number, request["seed"], request["long_side_px"], request.get("style", "day"))
        options = " ".join(f"({letter}) {text}" for letter, text in zip(_LETTERS, pair.options, strict=True))
        for member, right in zip(pair.members, pair.rights, strict=True):
            index = len(images) + 1
            asked = f'"{pair.question}"' if "," in pair.question else pair.question
            questions.append(f"{index},{asked},{options},({_LETTERS[right]})")
            expressions.append(f"{index}, {pair.expression}")
            images.append(_save(folder, index, member))
            annotations += _annotations(member, index, len(annotations))
    (folder / "Questions.csv").write_text("\n".join(questions) + "\n", encoding="utf-8")
    (folder / "Objects.csv").write_text("\n".join(expressions) + "\n", encoding="utf-8")
    info = {"description": "pixel_sail scenes: drawn pictures with exact masks", **request}
    values = {"info": info, "images": images, "annotations": annotations, "licenses": [], "categories": []}
    write_json(folder / "Segmentations.json", values)


def _save(folder: Path, index: int, member: Member) -> Record:
    """Writes the image; returns its entry."""
    name, (height, width) = f"{index}.jpg", member.pixels.shape[:2]
    Image.fromarray(member.pixels).save(folder / "MMVP Images" / name, quality=92, subsampling=0)
    return {"id": index, "width": width, "height": height, "file_name": name, "license": 0, "date_captured": ""}


def _annotations(member: Member, index: int, before: int) -> list[Record]:
    """One for each polygon, as the tool writes them that the published ones were drawn with."""
    found = []
    for number, polygon in enumerate(member.polygons, start=before + 1):
        xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
        bbox = [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))]
        area = abs(float((xs * np.roll(ys, -1) - ys * np.roll(xs, -1)).sum())) / 2
        found.append(
            {"segmentation": [polygon], "area": area, "bbox": bbox, "iscrowd": 0, "id": number, "image_id": index}
            | {"category_id": None}
        )
    return found


def _conversation(record: Record, seed: int) -> Record:
    """An entry in LLaVA's format."""
    image = record["image"]
    rng = np.random.default_rng([seed, image["id"] - 1, 5])
    turns = [_turn(choice, rng) for choice in choices_about(record["objects"], image["width"], rng)]
    turns[0] = ("<image>\n" + turns[0][0], turns[0][1])
    said = [message for turn in turns for message in zip(("human", "gpt"), turn, strict=True)]
    return {
        "id": f"{Path(image['file_name']).stem}_choices",
        "image": f"train2014/{image['file_name']}",
        "conversations": [{"from": who, "value": text} for who, text in said],
    }


def _turn(choice: Choice, rng: np.random.Generator) -> tuple[str, str]:
    asked = choose(choice.question, choice.options, CHOOSE[rng.integers(len(CHOOSE))])
    return asked, choice.options[choice.right]
