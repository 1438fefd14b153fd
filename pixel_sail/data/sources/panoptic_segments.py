"""Classes of COCO panoptic images as questions: one mask per object of a thing, one mask in all for stuff."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.masks import unite
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_instance import MAX_OBJECTS, each_turn
from pixel_sail.data.sources.coco_panoptic import FILE, PNG_FOLDER, Panoptic, Segment, read_panoptic, segment_masks
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE

NAME = "coco_panoptic_segments"


@dataclass(frozen=True, slots=True)
class ClassSegments:
    """The segments of one class in one image."""

    name: str
    segments: tuple[Segment, ...]
    stuff: bool  # grass, sky: "each" makes no sense


def open_panoptic_segments(root: Path, split: str, data: DataConfig) -> RegionSource[ClassSegments]:
    """Samples of one image with several classes. Raises DatasetError; unusable images are listed in `.problems`.

    As in `coco_instance`, a class with a crowd or with too many segments is not asked for in that image.
    """
    templates, path, finder, problems = Templates.of(data), FILE.find(root, split), ImageFinder(root), list[str]()

    def read() -> list[RegionImage[ClassSegments]]:
        return _read(read_panoptic(root, split, path, finder, NAME, described=False), f"{NAME}/{split}", path, problems)

    images = kept_entries(f"{NAME}/{split}", (path,), finder.asked, RegionImage[ClassSegments], problems, read)
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _read(panoptic: Panoptic, name: str, path: Path, problems: list[str]) -> list[RegionImage[ClassSegments]]:
    problems += panoptic.problems
    left_out, images = 0, []
    for image in panoptic.images:
        classes = tuple(shown for shown in whole_classes(image, panoptic) if len(shown.segments) <= MAX_OBJECTS)
        left_out += len({segment.text for segment in image.items}) - len(classes)
        if classes:
            images.append(RegionImage(image.key, image.path, classes))
    if left_out:
        problems.append(f"{name}: {left_out} classes of an image have a crowd or over {MAX_OBJECTS} segments")
    refuse_nothing(images, path, problems)
    return images


def whole_classes(image: RegionImage[Segment], panoptic: Panoptic) -> tuple[ClassSegments, ...]:
    """The classes that an image shows, by name, without those that lost segments as crowds."""
    names = sorted({segment.text for segment in image.items})
    return tuple(
        ClassSegments(name, tuple(segment for segment in image.items if segment.text == name), name in panoptic.stuff)
        for name in names
        if (image.key, name) not in panoptic.crowds
    )


def class_masks(image: RegionImage[ClassSegments], drawn: list[ClassSegments]) -> list[list[RLE]]:
    """The masks of the segments of each drawn class. Raises BadSample as `segment_masks` does."""
    segments = tuple(segment for item in drawn for segment in item.segments)
    masks = segment_masks(RegionImage(image.key, image.path, segments))
    return [[masks[segment.segment_id] for segment in item.segments] for item in drawn]


def _ask(
    templates: Templates, image: RegionImage[ClassSegments], drawn: list[ClassSegments], rng: np.random.Generator
) -> list[RegionTurn]:
    return [
        united_turn(templates, item.name, masks, 1, rng) if item.stuff else each_turn(templates, item.name, masks, rng)
        for item, masks in zip(drawn, class_masks(image, drawn), strict=True)
    ]


def united_turn(
    templates: Templates, name: str, pieces: list[RLE], targets: int, rng: np.random.Generator
) -> RegionTurn:
    """Asks for a class; one [SEG], the union of all its segments. The answer is worded for `targets` objects."""
    turn = templates.turn(name, targets, rng)
    return RegionTurn(turn.question, turn.answer, masks=(unite(pieces, tuple(pieces[0]["size"])),))


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE, PNG_FOLDER),
        sample="an image",
        turn="a class; one `[SEG]` per object of a thing, one `[SEG]` in all for stuff (grass, sky)",
        open=open_panoptic_segments,
    ),
)
