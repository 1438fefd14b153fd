"""Prompted regions -> the prompt index of each patch."""

from __future__ import annotations

import numpy as np
import torch

from pixel_sail.data.masks import area_px, mask_runs
from pixel_sail.tokens import MAX_PROMPTS
from pixel_sail.types import RLE, UNPROMPTED, BadSample, UnseenRegion


def prompt_ids(prompts: dict[int, RLE], size_hw: tuple[int, int], grid_hw: tuple[int, int], key: str) -> torch.Tensor:
    """The K of the <PromptK> drawn on each patch: (N,) int64, UNPROMPTED for a patch without a prompt.

    A patch is prompted if any pixel of the region (a mask of the image's `size_hw`) overlaps it. A patch shared by
    regions goes to the one with fewer pixels (on a tie, the lower K), whatever the order of `prompts`; but no region
    loses its last patch while another can spare one. Raises BadSample, beginning with `key`, for K out of range or a
    region of another size, and UnseenRegion for an empty region or one that gets no patch.
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
            raise UnseenRegion(f"{key}: the region of <Prompt{k}> is empty", k)
        runs = mask_runs(prompts[k], f"{key}: the region of <Prompt{k}>")
        reached[k] = torch.from_numpy(_overlapped(runs, size_hw, grid_hw))
        grid[reached[k]] = k
    for k in reached:
        if not (grid == k).any():
            _give_one_patch(grid, k, reached[k], key)
    return grid.flatten()


def _overlapped(runs: np.ndarray, size_hw: tuple[int, int], grid_hw: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the cells that a pixel of the region overlaps, as torch's adaptive_max_pool2d.

    `runs`: those of the region (data/runs.py), which is not drawn: it is cut into the runs of each column.
    """
    (height, width), (h, w) = size_hw, grid_hw
    stops = runs.cumsum()[1::2]
    starts = stops - runs[1::2]
    starts, stops = starts[starts < stops], stops[starts < stops]
    first = starts // height  # column
    columns = (stops - 1) // height - first + 1
    offsets = np.repeat(columns.cumsum() - columns, columns)
    column = np.repeat(first, columns) + np.arange(len(offsets)) - offsets
    top = np.maximum(np.repeat(starts, columns) - column * height, 0)
    bottom = np.minimum(np.repeat(stops, columns) - column * height, height) - 1

    # From the first cell that ends below the top of a run, to the last that begins at its bottom or above.
    rows, row_stops = _cells(height, h)
    begin = column * (h + 1) + np.searchsorted(row_stops, top, side="right")
    end = column * (h + 1) + np.searchsorted(rows, bottom, side="right")
    changes = np.bincount(begin, minlength=width * (h + 1)) - np.bincount(end, minlength=width * (h + 1))
    touched = changes.reshape(width, h + 1).cumsum(axis=1)[:, :h] > 0  # (W, h)

    bounds = np.stack(_cells(width, w), axis=1).ravel()
    padded = np.pad(touched, ((0, 1), (0, 0)))  # reduceat takes no bound at the very end
    # It takes [first, stop) of each pair; what it makes of [stop, next first) is left out.
    return np.logical_or.reduceat(padded, bounds, axis=0)[::2].T.copy()


def _cells(pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel of each cell, and the one past its last."""
    numbers = np.arange(cells)
    return numbers * pixels // cells, -(-(numbers + 1) * pixels // cells)


def _give_one_patch(grid: torch.Tensor, k: int, reached: torch.Tensor, key: str) -> None:
    """Takes a patch for region k, in place, from the largest region (in patches) that overlaps it."""
    owner = max(grid[reached].unique().tolist(), key=lambda other: int((grid == other).sum()))
    if (grid == owner).sum() < 2:
        raise UnseenRegion(
            f"{key}: the region of <Prompt{k}> cannot be seen: other regions cover every patch that it reaches; "
            "draw it larger, or ask about it alone",
            k,
        )
    row, column = (reached & (grid == owner)).nonzero()[0].tolist()
    grid[row, column] = k
