"""Classes of COCO panoptic images as questions: every class that an image shows, one mask of all its segments."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.data.sources.coco_panoptic import read_panoptic, segment_masks
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.panoptic_segments import ClassSegments, united_turn, whole_classes
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates

NAME = "coco_semantic"


def open_semantic(root: Path, split: str, templates: Templates, count: int) -> RegionSource[ClassSegments]:
    """Samples of one image with up to `count` classes. Raises DatasetError; problems are listed.

    A class of which a crowd was left out is not asked for in that image: its mask would not be whole.
    """
    path = root / "annotations" / f"panoptic_{split}2017.json"
    panoptic = read_panoptic(root, split, path, NAME, described=False)
    images = [RegionImage(image.key, image.path, whole_classes(image, panoptic)) for image in panoptic.images]
    problems = panoptic.problems + [f"{image.key}: only crowds" for image in images if not image.items]
    images = [image for image in images if image.items]
    refuse_nothing(images, path, problems)
    return RegionSource(images, problems, count, partial(_ask, templates))


def _ask(
    templates: Templates, image: RegionImage[ClassSegments], drawn: list[ClassSegments], rng: np.random.Generator
) -> list[RegionTurn]:
    masks = segment_masks(RegionImage(image.key, image.path, tuple(one for item in drawn for one in item.segments)))
    turns = []
    for item in drawn:
        pieces = [masks[segment.segment_id] for segment in item.segments]
        turns.append(united_turn(templates, item.name, pieces, len(pieces), rng))
    return turns
