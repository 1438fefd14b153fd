"""Captions of objects: [{image_name, object_annotations: [{segmentation: RLE, caption}]}].

`<root>/sam_captions/{split}.json`, and the caption file of PerBench.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, read_entries, sized_mask, text_member
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.types import BadSample

NAME = "sam_captions"


@dataclass(frozen=True, slots=True)
class CaptionedObject:
    key: str  # "<key of the image>/<index>"
    segmentation: dict[str, Any]  # as in the file: decoded only when it is drawn
    caption: str


def open_sam_captions(root: Path, split: str, count: int) -> RegionSource[CaptionedObject]:
    """Raises DatasetError; what cannot be used is listed in `.problems`."""
    problems: list[str] = []
    path = root / NAME / f"{split}.json"
    return RegionSource(read_captions(path, ImageFinder(root), f"{NAME}/{split}", problems), problems, count, _ask)


def read_captions(
    path: Path, finder: ImageFinder, name: str, problems: list[str]
) -> list[RegionImage[CaptionedObject]]:
    """Every image of a file with the objects that have a caption; the others go into `problems`."""

    def parse(entry: Any, key: str) -> RegionImage[CaptionedObject]:
        image = finder.find(member(entry, "image_name", str, key), key)
        objects = []
        for number, annotation in enumerate(member(entry, "object_annotations", list, key)):
            where = f"{key}/{number}"
            try:
                segmentation = member(annotation, "segmentation", dict, where)
                objects.append(CaptionedObject(where, segmentation, text_member(annotation, "caption", where)))
            except BadSample as error:
                problems.append(str(error))
        if not objects:
            raise BadSample(f"{key}: no object with a caption is left")
        return RegionImage(key, image, tuple(objects))

    return read_entries(path, name, parse, problems)


def _ask(
    image: RegionImage[CaptionedObject], drawn: list[CaptionedObject], rng: np.random.Generator
) -> list[RegionTurn]:
    regions = [sized_mask(one.segmentation, one.key) for one in drawn]
    return [
        RegionTurn(about("<Prompt0>", DESCRIBE[rng.integers(len(DESCRIBE))]), one.caption, {0: region})
        for one, region in zip(drawn, regions, strict=True)
    ]
