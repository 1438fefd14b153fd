"""Classes of COCO panoptic images as questions: a mask for each thing of a class, one for all of a stuff."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.data.masks import unite
from pixel_sail.data.sources.coco_instance import MAX_OBJECTS, each_turn
from pixel_sail.data.sources.coco_panoptic import Panoptic, Segment, read_panoptic, segment_masks
from pixel_sail.data.sources.entries import refuse_nothing
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


def open_panoptic_segments(root: Path, split: str, templates: Templates, count: int) -> RegionSource[ClassSegments]:
    """Samples of one image with up to `count` classes. Raises DatasetError; problems are listed.

    As in `coco_instance`, a class with a crowd or too many segments is not asked for in that image.
    """
    path = root / "annotations" / f"panoptic_{split}2017.json"
    panoptic = read_panoptic(root, split, path, NAME, described=False)
    problems, left_out, images = list(panoptic.problems), 0, []
    for image in panoptic.images:
        classes = tuple(one for one in whole_classes(image, panoptic) if len(one.segments) <= MAX_OBJECTS)
        left_out += len({segment.text for segment in image.items}) - len(classes)
        if classes:
            images.append(RegionImage(image.key, image.path, classes))
    if left_out:
        problems.append(f"{NAME}/{split}: {left_out} classes of an image have a crowd or over {MAX_OBJECTS} segments")
    refuse_nothing(images, path, problems)
    return RegionSource(images, problems, count, partial(_ask, templates))


def whole_classes(image: RegionImage[Segment], panoptic: Panoptic) -> tuple[ClassSegments, ...]:
    """The classes that an image shows, by name, without those of which a crowd was left out."""
    names = sorted({segment.text for segment in image.items})
    return tuple(
        ClassSegments(name, tuple(one for one in image.items if one.text == name), name in panoptic.stuff)
        for name in names
        if (image.key, name) not in panoptic.crowds
    )


def _ask(
    templates: Templates, image: RegionImage[ClassSegments], drawn: list[ClassSegments], rng: np.random.Generator
) -> list[RegionTurn]:
    segments = tuple(segment for one in drawn for segment in one.segments)
    masks = segment_masks(RegionImage(image.key, image.path, segments))
    turns = []
    for one in drawn:
        pieces = [masks[segment.segment_id] for segment in one.segments]
        if one.stuff:
            turns.append(united_turn(templates, one.name, pieces, 1, rng))
        else:
            turns.append(each_turn(templates, one.name, pieces, rng))
    return turns


def united_turn(
    templates: Templates, name: str, pieces: list[RLE], targets: int, rng: np.random.Generator
) -> RegionTurn:
    """Asks for a class; one [SEG], the union of all its segments, worded for so many targets."""
    turn = templates.turn(name, targets, rng)
    return RegionTurn(turn.question, turn.answer, masks=(unite(pieces, tuple(pieces[0]["size"])),))
