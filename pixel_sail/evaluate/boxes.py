"""Boxes as answers: (left, top, right, bottom) in pixels of the stored image. A mask's box is that of its pixels."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from pixel_sail.types import BadSample

Box = tuple[float, float, float, float]


def check_box(value: Any, where: str) -> None:
    """Raises BadSample, with a message that begins with `where`, unless `value` is None or four finite numbers."""
    if value is None:
        return
    numbers = isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value))
    if not numbers or not all(math.isfinite(number) for number in value):
        raise BadSample(f"{where}: {reprlib.repr(value)} is no box; expected four finite numbers, in pixels")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def from_xywh(values: Any) -> Box:
    left, top, width, height = values
    return left, top, left + width, top + height


def box_iou(first: Box | None, second: Box) -> float:
    """IoU in 0..1 of two boxes as areas in the plane; 0 without a box, and for one whose right is left of its left."""
    if first is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(first) + _area(second) - width * height)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
