"""The squares of a patch, turned with their place in the image before they are embedded together, as in NEO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def turned_by_place(squares: Tensor, grids_hw: Sequence[tuple[int, int]], theta: float) -> Tensor:
    """Embedded squares (sum N, s s, m), row by row in each patch, rotated in pairs of neighbouring channels.

    The first half of the channels turns with the column of the square in its image, the second with its row; `theta` is
    the base of the frequencies. Computed in float32. `grids_hw`: (h, w) patches of the images.
    """
    grids = [grid for grid in grids_hw if grid[0]]
    if not grids:
        return squares
    side, half = round(squares.shape[1] ** 0.5), squares.shape[2] // 2
    places = torch.cat([_places(h, w, side, squares.device) for h, w in grids])  # (sum N, s s, 2)
    frequencies = theta ** (-torch.arange(0, half, 2, device=squares.device) / half)
    angles = places[..., None] * frequencies  # (sum N, s s, 2, m / 4)
    a, b = squares.float().unflatten(2, (2, half // 2, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(2).to(squares.dtype)


def _places(h: int, w: int, side: int, device: torch.device) -> Tensor:
    """(column, row) of each square of h x w patches, (h w, side side, 2)."""
    columns = torch.arange(w * side, device=device).view(1, w, 1, side).expand(h, w, side, side)
    rows = torch.arange(h * side, device=device).view(h, 1, side, 1).expand(h, w, side, side)
    return torch.stack([columns, rows], dim=-1).reshape(h * w, side * side, 2)
