"""Captions of objects: [{image_name, object_annotations: [{segmentation: RLE, caption}]}].

PerBench's file of captions has the same format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, numbered, parse_usable, sized_mask, text_member
from pixel_sail.data.sources.marked_regions import without_marking
from pixel_sail.data.sources.pieces import kept_list
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.types import BadSample

NAME = "sam_captions"
FILE = ExpectedFile(
    "sam_captions/{split}.json",
    other_places=("sam_captions/object_caption_data_{split}_split.json",),  # as its authors name it
)


@dataclass(frozen=True, slots=True)
class CaptionedObject:
    key: str  # "<key of the image>/<index>"
    segmentation: dict[str, Any]  # as in the file: decoded only when it is drawn
    caption: str


def open_sam_captions(root: Path, split: str, data: DataConfig) -> RegionSource[CaptionedObject]:
    """Samples of one image with several objects. Raises DatasetError; unusable objects are in `.problems`."""
    problems: list[str] = []
    images = read_captions(
        FILE.find(root, split), ImageFinder(root), f"{NAME}/{split}", problems, clean=without_marking
    )
    return RegionSource(images, problems, data.expressions_per_image, _ask)


def read_captions(
    path: Path, finder: ImageFinder, name: str, problems: list[str], clean: Callable[[str], str] = str
) -> Sequence[RegionImage[CaptionedObject]]:
    """Every image of a file with the objects that have a caption; the others go into `problems`. DatasetError.

    `clean` rewrites the captions; an object whose caption becomes empty is left out.
    """

    def parse(entry: Any, key: str) -> RegionImage[CaptionedObject]:
        image = finder.find(member(entry, "image_name", str, key), key)
        annotations = member(entry, "object_annotations", list, key)
        objects = parse_usable(numbered(annotations, key), partial(_captioned_object, clean), problems)
        if not objects:
            raise BadSample(f"{key}: no object with a caption is left")
        return RegionImage(key, image, tuple(objects))

    return kept_list(path, name, RegionImage[CaptionedObject], parse, problems, finder.asked)


def _captioned_object(clean: Callable[[str], str], annotation: Any, key: str) -> CaptionedObject:
    segmentation = member(annotation, "segmentation", dict, key)
    refuse_empty(segmentation, None, key)
    caption = text_member(annotation, "caption", key)
    cleaned = clean(caption)
    if not cleaned:
        raise BadSample(f"{key}: its caption {caption!r:.60} is about the marking of the region")
    return CaptionedObject(key, segmentation, cleaned)


def _ask(
    image: RegionImage[CaptionedObject], drawn: list[CaptionedObject], rng: np.random.Generator
) -> list[RegionTurn]:
    regions = [sized_mask(item.segmentation, item.key) for item in drawn]
    return [
        RegionTurn(about("<Prompt0>", DESCRIBE[rng.integers(len(DESCRIBE))]), item.caption, {0: region})
        for item, region in zip(drawn, regions, strict=True)
    ]


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE,),
        sample="an image",
        turn="a region and its description",
        open=open_sam_captions,
    ),
)
