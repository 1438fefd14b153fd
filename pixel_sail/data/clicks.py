"""Clicks on an image: the patch that each is on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pixel_sail.types import BadSample, Click, Clicks


def check_click(click: Click, size_hw: tuple[int, int], where: str) -> None:
    """Raises BadSample, beginning with `where`, for a click outside of an image of `size_hw` pixels."""
    height, width = size_hw
    if not (0 <= click.x < width and 0 <= click.y < height):  # false for NaN, too
        raise BadSample(
            f"{where}: the click ({click.x:g}, {click.y:g}) is outside the image of {width} x {height} pixels"
        )


def place_clicks(
    tokens: Sequence[int], clicks: Sequence[Click], size_hw: tuple[int, int], grid_hw: tuple[int, int], where: str
) -> Clicks:
    """The clicks, at these tokens of a text, on an image of `size_hw` pixels that has `grid_hw` patches.

    Raises BadSample, beginning with `where`, for a click outside of the image, or if there is none.
    """
    h, w = grid_hw
    if not h * w:
        raise BadSample(f"{where}: there are clicks, but no image")
    patches, values = [], []
    for click in clicks:
        check_click(click, size_hw, where)
        # the point of a pixel is its centre, as users see it
        x, y = (_centre(click.x) / size_hw[1] * w, _centre(click.y) / size_hw[0] * h)
        column, row = min(int(x), w - 1), min(int(y), h - 1)
        patches.append(row * w + column)
        values.append([click.positive, not click.positive, 2 * (x - column) - 1, 2 * (y - row) - 1])
    return Clicks(torch.tensor(list(tokens)), torch.tensor(patches), torch.tensor(values, dtype=torch.float32))


def _centre(coordinate: float) -> float:
    """The middle of the pixel that has this coordinate."""
    return math.floor(coordinate) + 0.5
