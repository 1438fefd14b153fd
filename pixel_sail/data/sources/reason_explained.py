"""The explanations of ReasonSeg (LISA, arXiv 2308.00692): answers in words beside the mask.

`explanatory/train.json` is a list of {image, query, outputs}; images and polygons are those of the split train.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.entries import member, read_entries, text_member
from pixel_sail.data.sources.reason_seg import FOLDER, ReasonImage, read_reason_seg, target_and_ignored
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import QUESTIONS_EXPLAINED, Templates
from pixel_sail.types import BadSample

NAME = "reason_seg_explained"
FILE = ExpectedFile("reason_seg/ReasonSeg/explanatory/train.json")


@dataclass(frozen=True, slots=True)
class Explanation:
    image: ReasonImage
    query: str
    outputs: str


def open_explained(root: Path, split: str, data: DataConfig) -> RegionSource[Explanation]:
    """Samples of one image with its explanation. Raises DatasetError; unusable entries are in `.problems`."""
    path, templates, problems = FILE.find(root, split), Templates.of(data), list[str]()
    by_name = {image.path.name: image for image in read_reason_seg(root, "train", problems)}

    def parse(entry: Any, key: str) -> RegionImage[Explanation]:
        name = member(entry, "image", str, key)
        if name not in by_name:
            raise BadSample(f"{key}: no usable image {reprlib.repr(name)} in {FOLDER.path(root, 'train')}")
        image = by_name[name]
        explanation = Explanation(image, text_member(entry, "query", key), text_member(entry, "outputs", key))
        return RegionImage(key, image.path, (explanation,))

    images = read_entries(path, NAME, parse, problems)
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _ask(
    templates: Templates, image: RegionImage[Explanation], drawn: list[Explanation], rng: np.random.Generator
) -> list[RegionTurn]:
    turns = []
    for item in drawn:
        target, _ = target_and_ignored(item.image)
        turn = templates.reason(item.query, rng, QUESTIONS_EXPLAINED)
        turns.append(RegionTurn(turn.question, f"{turn.answer} {item.outputs}", masks=(target,)))
    return turns


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train",),
        files=(FILE, FOLDER),
        sample="an image",
        turn="a question; the answer has the mask of its target and says why",
        open=open_explained,
        train_only=True,
        image_folders=(),  # the images are beside the JSON files of reason_seg
    ),
)
