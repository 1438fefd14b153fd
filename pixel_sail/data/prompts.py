"""Prompted regions -> the prompt index of each patch."""

from __future__ import annotations

import numpy as np
import torch

from pixel_sail.data.masks import area_px, decode_mask
from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import RLE, UNPROMPTED, BadSample, NoPixels


def prompt_ids(prompts: dict[int, RLE], size_hw: tuple[int, int], grid_hw: tuple[int, int], key: str) -> torch.Tensor:
    """The K of the <PromptK> drawn on each patch: (N,) int64, UNPROMPTED for a patch without a prompt.

    A patch is prompted if any pixel of the region (a mask of the image's `size_hw`) overlaps it. A patch shared by
    regions goes to the one with fewer pixels (on a tie, the lower K), whatever the order of `prompts`; but no region
    loses its last patch while another can spare one. Raises BadSample, beginning with `key`, for K out of range or a
    region of another size, and NoPixels for an empty region or one that gets no patch.
    """
    grid = torch.full(grid_hw, UNPROMPTED, dtype=torch.int64)
    reached: dict[int, torch.Tensor] = {}
    for k in sorted(prompts, key=lambda k: (area_px(prompts[k]), k), reverse=True):
        if not 0 <= k < MAX_PROMPTS:
            raise BadSample(f"{key}: there is no <Prompt{k}>; prompts are numbered 0 to {MAX_PROMPTS - 1}")
        if tuple(prompts[k]["size"]) != tuple(size_hw):
            raise BadSample(
                f"{key}: the region of <Prompt{k}> is {prompts[k]['size']}, the image {list(size_hw)} pixels"
            )
        if area_px(prompts[k]) == 0:
            raise NoPixels(f"{key}: the region of <Prompt{k}> is empty")
        reached[k] = torch.from_numpy(_overlapped(decode_mask(prompts[k]), grid_hw))
        grid[reached[k]] = k
    for k in reached:
        if not (grid == k).any():
            _give_one_patch(grid, k, reached[k], key)
    return grid.flatten()


def _overlapped(region: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (h, w) bool: the cells that a pixel of the region overlaps, as torch's adaptive_max_pool2d."""
    pixels_hw, region = region.shape, np.pad(region, (0, 1))  # reduceat takes no bound at the very end
    for axis, (cells, pixels) in enumerate(zip(grid_hw, pixels_hw, strict=True)):
        first = np.arange(cells) * pixels // cells
        stop = -(-(np.arange(cells) + 1) * pixels // cells)
        # reduceat takes [first, stop) of each pair; what it makes of [stop, next first) is left out.
        bounds = np.stack([first, stop], axis=1).ravel()
        region = np.logical_or.reduceat(region, bounds, axis=axis).take(np.arange(0, 2 * cells, 2), axis=axis)
    return region


def _give_one_patch(grid: torch.Tensor, k: int, reached: torch.Tensor, key: str) -> None:
    """Takes a patch for region k, in place, from the largest region (in patches) that overlaps it."""
    owner = max(grid[reached].unique().tolist(), key=lambda other: int((grid == other).sum()))
    if (grid == owner).sum() < 2:
        raise NoPixels(
            f"{key}: the region of <Prompt{k}> cannot be seen: other regions cover every patch that it reaches; "
            "draw it larger, or ask about it alone"
        )
    row, column = (reached & (grid == owner)).nonzero()[0].tolist()
    grid[row, column] = k
