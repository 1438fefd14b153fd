"""Two images that show the same object: asked with a region in the first for the mask in the second."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.scenes.formats import held_out, training, write_json_lines
from pixel_sail.scenes.types import ImageRecord, Name, Request, Rng

QUESTIONS = (
    "<Prompt0> is an object in the first image. Please segment the same object in the second image.",
    "Where in the second image is <Prompt0> of the first image? Please segment it.",
    "Please find <Prompt0> again in the second image and segment it.",
)
ANSWER = "It is [SEG]."


def write_pair_files(out: Path, records: list[ImageRecord], request: Request) -> None:
    """pairs_{train,val}.jsonl, in the format of docs/jsonl.md."""
    for number, (split, chosen) in enumerate((("train", training(records)), ("val", held_out(records)))):
        rng = np.random.default_rng([request["seed"], 6, number])
        write_json_lines(out / f"pairs_{split}.jsonl", _lines(chosen, rng))


def _lines(records: list[ImageRecord], rng: Rng) -> list[dict[str, Any]]:
    """For each image, in order, one of its objects that colour and kind alone name, here and in another image."""
    named = [_named(record) for record in records]
    places: dict[Name, list[int]] = defaultdict(list)  # numbers of the images with such an object
    for number, objects in enumerate(named):
        for name in objects:
            places[name].append(number)
    lines = []
    for number, objects in enumerate(named):
        shared = [name for name in objects if len(places[name]) > 1]
        if not shared:
            continue
        name = shared[rng.integers(len(shared))]
        others = [other for other in places[name] if other != number]
        second = others[rng.integers(len(others))]
        question = QUESTIONS[rng.integers(len(QUESTIONS))]
        lines.append(
            {
                "images": [f"train2014/{records[i].image['file_name']}" for i in (number, second)],
                "conversations": [{"question": question, "answer": ANSWER}],
                "regions": {"0": records[number].objects[objects[name]].segmentation},
                "region_images": {"0": 0},
                "masks": [records[second].objects[named[second][name]].segmentation],
                "mask_images": [1],
            }
        )
    return lines


def _named(record: ImageRecord) -> dict[Name, int]:
    """(colour, kind) -> the only object of the image that has both."""
    names = [(thing.colour, thing.kind) for thing in record.objects]
    counts = Counter(names)
    return {name: i for i, name in enumerate(names) if counts[name] == 1}
