"""Where a patch lies in its image, as values that are embedded with its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WAVES = 4  # cosines an axis: of half a period over the image, of one, of one and a half, of two
POSITION_VALUES = 2 * WAVES


def position_values(grids_hw: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(sum N, 8) for the patches of images of h x w patches, row by row; dtype and device of `like`.

    Four of its row, then four of its column: cos(pi k t), k = 1 .. 4, with t in (0, 1) from edge to edge. So "left" and
    "top" mean the same in images of any size.
    """
    return torch.cat([like.new_zeros(0, POSITION_VALUES), *(_grid(h, w, like) for h, w in grids_hw if h)])


def _grid(h: int, w: int, like: Tensor) -> Tensor:
    rows, columns = _waves(h, like), _waves(w, like)
    both = torch.cat([rows[:, None].expand(h, w, WAVES), columns[None].expand(h, w, WAVES)], dim=-1)
    return both.reshape(h * w, POSITION_VALUES)


def _waves(count: int, like: Tensor) -> Tensor:
    """(count, WAVES) of the centres of `count` cells."""
    t = (torch.arange(count, device=like.device) + 0.5) / count
    return torch.cos(math.pi * t[:, None] * torch.arange(1, WAVES + 1, device=like.device)).to(like.dtype)
