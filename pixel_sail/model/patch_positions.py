"""The position of a patch in its image, as values that are embedded with its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WAVES = 4  # cosines per axis, with 0.5, 1, 1.5 and 2 periods over the image
POSITION_VALUES = 2 * WAVES


def position_values(grids_hw: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Eight values of each patch, row by row: (sum N, 8), in dtype and device of `like`. `grids_hw`: (h, w) of images.

    Four of the row, then four of the column: cos(pi k t), k = 1 .. 4, with t in (0, 1) from edge to edge. So "left" and
    "top" mean the same in images of any size.
    """
    return torch.cat([like.new_zeros(0, POSITION_VALUES), *(_grid(h, w, like) for h, w in grids_hw if h)])


def _grid(h: int, w: int, like: Tensor) -> Tensor:
    rows, columns = _waves(h, like), _waves(w, like)
    both = torch.cat([rows[:, None].expand(h, w, WAVES), columns[None].expand(h, w, WAVES)], dim=-1)
    return both.reshape(h * w, POSITION_VALUES)


def _waves(count: int, like: Tensor) -> Tensor:
    """Cosines (count, WAVES) at the centres of `count` cells."""
    t = (torch.arange(count, device=like.device) + 0.5) / count
    return torch.cos(math.pi * t[:, None] * torch.arange(1, WAVES + 1, device=like.device)).to(like.dtype)
