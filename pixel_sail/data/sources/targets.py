"""Masks that show nothing: found on reading, so that a phrase, question or turn is left out and never its image."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from pixel_sail.data.limits import MAX_IMAGE_PIXELS
from pixel_sail.data.masks import area_px, has_pixels
from pixel_sail.data.sources.entries import sized_mask
from pixel_sail.types import RLE, BadSample, NoPixels

_LONG = 64  # characters; an RLE of so many runs shows something, and to decode them all would take minutes


def refuse_empty(segmentation: Any, size_hw: tuple[int, int] | None, where: str) -> None:
    """Raises BadSample for a mask that is missing, covers no pixel, or has a polygon of fewer than three points.

    `size_hw`: the size of the image, None if it is not in the file. A damaged RLE passes: that is an error of the file,
    raised (and counted by `data.max_bad_samples`) when it is drawn. Polygons of any kind are decided here.
    """
    if not segmentation:
        raise BadSample(f"{where}: it has no mask")
    if isinstance(segmentation, dict):
        mask = _of_rle(segmentation, where)
        is_shown = mask is None or area_px(mask) > 0
    else:
        degenerate: list[str] = []
        is_shown = has_pixels(segmentation, *(size_hw or _canvas(segmentation)), where, degenerate)
        if degenerate:
            raise NoPixels(degenerate[0])
    if not is_shown:
        raise BadSample(f"{where}: its mask has no pixel")


def _of_rle(segmentation: dict[str, Any], where: str) -> RLE | None:
    """None for an RLE that need not or cannot be decoded."""
    counts = segmentation.get("counts")
    if isinstance(counts, str) and len(counts) > _LONG:
        return None
    try:
        return sized_mask(segmentation, where)
    except BadSample:
        return None


def _canvas(segmentation: Any) -> tuple[int, int]:
    """(height, width) that hold the polygons, where the size of the image is not known."""
    try:
        points = [float(value) for value in chain.from_iterable(segmentation)]
        height, width = (max(1, math.ceil(max(points[start::2], default=0)) + 1) for start in (1, 0))
        return min(height, MAX_IMAGE_PIXELS), min(width, MAX_IMAGE_PIXELS)
    except (TypeError, ValueError, OverflowError):
        return 1, 1  # not polygons: `from_coco` says so
