"""Pix2Cap-COCO: descriptions of COCO's panoptic segments, whose PNGs they use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_panoptic import PNG_FOLDER, Panoptic, Segment, read_panoptic, segment_masks
from pixel_sail.data.sources.entries import parse_usable, refuse_nothing
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import DESCRIBE, Templates, about
from pixel_sail.types import BadSample

CAPTION, SEGMENT = "pix2cap_caption", "pix2cap_segment"
FILE = ExpectedFile("pix2cap/pix2cap_coco_{split}.json", other_places=("pixel2cap/pix2cap_coco_{split}.json",))
MIN_CHARACTERS = 6  # shorter descriptions, such as "N/A", say nothing


def open_caption(root: Path, split: str, data: DataConfig) -> RegionSource[Segment]:
    """From region to description. Raises DatasetError; unusable images and descriptions are in `.problems`."""
    images, problems = _kept(root, split, CAPTION)
    return RegionSource(images, problems, data.expressions_per_image, _describe)


def open_segment(root: Path, split: str, data: DataConfig) -> RegionSource[Segment]:
    """From description to mask. Raises DatasetError; unusable images and descriptions are in `.problems`."""
    templates, (images, problems) = Templates.of(data), _kept(root, split, SEGMENT)
    return RegionSource(images, problems, data.expressions_per_image, partial(_segment, templates))


def _kept(root: Path, split: str, name: str) -> tuple[Sequence[RegionImage[Segment]], list[str]]:
    path, finder, problems = FILE.find(root, split), ImageFinder(root), list[str]()

    def read() -> list[RegionImage[Segment]]:
        return _read(read_panoptic(root, split, path, finder, name, described=True), path, problems)

    return kept_entries(f"{name}/{split}", (path,), finder.asked, RegionImage[Segment], problems, read), problems


def _read(panoptic: Panoptic, path: Path, problems: list[str]) -> list[RegionImage[Segment]]:
    problems += panoptic.problems
    images = []
    for image in panoptic.images:
        keyed = ((segment, f"{image.key}: segment {segment.segment_id}") for segment in image.items)
        usable = parse_usable(keyed, _usable, problems)
        if usable:
            images.append(replace(image, items=tuple(usable)))
        else:
            problems.append(f"{image.key}: no segment with a description is left")
    refuse_nothing(images, path, problems)
    return images


def _usable(segment: Segment, where: str) -> Segment:
    if len(segment.text) < MIN_CHARACTERS:
        raise BadSample(f"{where}: its description {segment.text!r} is too short")
    if segment.area_px == 0:
        raise BadSample(f"{where}: its area is 0 pixels")
    return segment


def _describe(image: RegionImage[Segment], drawn: list[Segment], rng: np.random.Generator) -> list[RegionTurn]:
    masks = segment_masks(image)
    return [
        RegionTurn(
            question=about("<Prompt0>", DESCRIBE[rng.integers(len(DESCRIBE))]),
            answer=segment.text,
            prompts={0: masks[segment.segment_id]},
        )
        for segment in drawn
    ]


def _segment(
    templates: Templates, image: RegionImage[Segment], drawn: list[Segment], rng: np.random.Generator
) -> list[RegionTurn]:
    masks = segment_masks(image)
    turns = [(templates.turn(_expression(segment.text), 1, rng), masks[segment.segment_id]) for segment in drawn]
    return [RegionTurn(turn.question, turn.answer, masks=(mask,)) for turn, mask in turns]


def _expression(description: str) -> str:
    """ "A red cup." -> "a red cup", to stand inside a question."""
    first, space, rest = description.removesuffix(".").partition(" ")
    return (first.lower() if first in ("A", "An", "The", "This") else first) + space + rest


RECORDS = (
    SourceRecord(
        name=CAPTION,
        splits=("train", "val"),
        files=(FILE, PNG_FOLDER),
        sample="an image",
        turn="a region and its description",
        open=open_caption,
    ),
    SourceRecord(
        name=SEGMENT,
        splits=("train", "val"),
        files=(FILE, PNG_FOLDER),
        sample="an image",
        turn="a description and its mask",
        open=open_segment,
    ),
)
