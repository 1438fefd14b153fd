"""Masks as runs of equal pixels, column by column as in RLE: read, resized, and put together for the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pixel_sail.data.limits import MAX_IMAGE_PIXELS
from pixel_sail.types import Masks

_MAX_CHARACTERS = 8  # of a run length, 5 bits each; MAX_IMAGE_PIXELS has 28


def run_lengths(counts: bytes) -> np.ndarray | None:
    """The runs of a compressed RLE, int64: of 0s, of 1s, of 0s, ... None if it is torn.

    As pycocotools' rleFrString: a run has one or more characters of 5 bits, the lowest first. Bit 6 says that another
    one follows; the sign is bit 5 of the last. From the fourth run on it is the difference from the last but one.
    """
    characters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(characters):
        return characters
    last = characters & 32 == 0
    if characters.min() < 0 or characters.max() > 63 or not last[-1]:
        return None
    stops = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], stops[:-1]])
    lengths = stops - starts
    if lengths.max() > _MAX_CHARACTERS:
        return None
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((characters & 31) << 5 * places, starts)
    runs -= np.where(characters[stops - 1] & 16, 1 << 5 * lengths, 0)
    if np.abs(runs).max() > MAX_IMAGE_PIXELS:  # also, what follows cannot overflow
        return None
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def resize_runs(runs: np.ndarray, size_hw: tuple[int, int], new_hw: tuple[int, int]) -> np.ndarray:
    """The runs of a mask of `size_hw` that is resized as by `resize_nearest`, without drawing its pixels."""
    if size_hw == new_hw:
        return runs
    (height, width), (new_height, new_width) = size_hw, new_hw
    changes = runs[:-1].cumsum()  # pixels, by columns, at which the value changes
    columns, rows = np.divmod(changes, height)
    # The first new row whose centre lies at a row or below it; new_height if there is none.
    new_rows = -((height - 2 * new_height * rows) // (2 * height))
    # Each new column repeats the changes first .. stop - 1 of an old one.
    old_columns = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
    first, stop = np.searchsorted(columns, [old_columns, old_columns + 1])
    lengths = stop - first
    offsets = np.repeat(first - (lengths.cumsum() - lengths), lengths)
    new_changes = new_rows[np.arange(len(offsets)) + offsets] + np.repeat(np.arange(new_width) * new_height, lengths)
    # A column may begin with another value than the one before it ended with, as the columns between are left out.
    before = np.concatenate([[0], stop[:-1]])
    tops = np.flatnonzero((first - before) & 1) * new_height
    return np.diff(np.sort(np.concatenate([new_changes, tops])), prepend=0, append=new_height * new_width)


def join_masks(masks: Sequence[np.ndarray], size_hw: tuple[int, int]) -> Masks:
    """Masks of one size, each given by its runs."""
    even = [runs if len(runs) % 2 == 0 else np.append(runs, 0) for runs in masks]
    runs = np.concatenate(even).astype(np.int32) if even else np.empty(0, dtype=np.int32)
    return Masks(torch.from_numpy(runs), len(masks), size_hw)
