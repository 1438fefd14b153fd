"""Pix2Cap-COCO: panoptic segments with a description. `<root>/pix2cap/pix2cap_coco_{split}.json`, the PNGs of COCO."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.data.sources.coco_panoptic import Segment, read_panoptic, segment_masks
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import DESCRIBE, Templates, about

CAPTION, SEGMENT = "pix2cap_caption", "pix2cap_segment"
NAMES = (CAPTION, SEGMENT)


def open_pix2cap(root: Path, name: str, split: str, count: int, templates: Templates) -> RegionSource[Segment]:
    """From region to description, or from description to mask. Raises DatasetError; problems are listed."""
    panoptic = read_panoptic(root, split, root / "pix2cap" / f"pix2cap_coco_{split}.json", name, described=True)
    ask = _describe if name == CAPTION else partial(_segment, templates)
    return RegionSource(panoptic.images, panoptic.problems, count, ask)


def _describe(image: RegionImage[Segment], drawn: list[Segment], rng: np.random.Generator) -> list[RegionTurn]:
    masks = segment_masks(image)
    return [
        RegionTurn(about("<Prompt0>", DESCRIBE[rng.integers(len(DESCRIBE))]), one.text, {0: masks[one.segment_id]})
        for one in drawn
    ]


def _segment(
    templates: Templates, image: RegionImage[Segment], drawn: list[Segment], rng: np.random.Generator
) -> list[RegionTurn]:
    masks = segment_masks(image)
    turns = [(templates.turn(_expression(one.text), 1, rng), masks[one.segment_id]) for one in drawn]
    return [RegionTurn(turn.question, turn.answer, masks=(mask,)) for turn, mask in turns]


def _expression(description: str) -> str:
    """ "A red cup." -> "a red cup", to stand inside a question."""
    first, space, rest = description.removesuffix(".").partition(" ")
    return (first.lower() if first in ("A", "An", "The", "This") else first) + space + rest
