"""Masks as runs: read from RLE, resized and put together as their pixels would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixel_sail.data.masks import encode_mask, mask_runs, resize_nearest
from pixel_sail.data.runs import join_masks, resize_runs, run_lengths
from pixel_sail.types import BadSample


def drawn(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """Noise, a rectangle, nothing and everything."""
    rectangle = np.zeros((height, width), dtype=bool)
    top, left = rng.integers(height), rng.integers(width)
    rectangle[top:, left : left + width // 2 + 1] = True
    return [rng.random((height, width)) < 0.3, rectangle, rectangle & False, rectangle | True]


def test_run_lengths_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    for mask in drawn(rng, 300, 211) + drawn(rng, 1, 1):
        pixels, runs = mask.T.ravel(), mask_runs(encode_mask(mask), "a")
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), pixels)
        assert len(runs) == 1 + np.count_nonzero(np.diff(pixels, prepend=False))


@pytest.mark.parametrize("counts", [b"\x00", b"~", b"T", b"9T", b"PPPPPPPP0", b"oooooooo0", b"ooooooo0"])
def test_torn_runs_are_none(counts: bytes) -> None:
    """No character of RLE; ends in the middle of a number; nine characters; more pixels than an image has."""
    assert run_lengths(counts) is None


def test_runs_are_resized_as_pixels_are() -> None:
    """Larger, smaller, one side only, to one pixel: all masks of a size joined, and drawn again."""
    rng = np.random.default_rng(1)
    for _ in range(150):
        size_hw, new_hw = (tuple(int(side) for side in rng.integers(1, 40, 2)) for _ in range(2))
        if rng.random() < 0.3:
            new_hw = (size_hw[0], new_hw[1]) if rng.random() < 0.5 else size_hw
        masks = drawn(rng, *size_hw)
        runs = [resize_runs(mask_runs(encode_mask(mask), "a"), size_hw, new_hw) for mask in masks]
        pixels = join_masks(runs, new_hw).pixels()
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), np.stack([resize_nearest(mask, new_hw) for mask in masks])), (
            size_hw,
            new_hw,
        )
        assert [bool(run[1::2].any()) for run in runs] == pixels.flatten(1).any(1).tolist()


def test_no_masks() -> None:
    assert len(join_masks([], (32, 48))) == 0 and join_masks([], (32, 48)).pixels().shape == (0, 32, 48)


def test_masks_are_small() -> None:
    """Five objects of 1024 px: 4 bytes for each run of a column, where their pixels are 5 MB."""
    rows, columns = np.mgrid[:1024, :1024]
    disks = [(rows - 500) ** 2 + (columns - 300 - 50 * k) ** 2 < 250**2 for k in range(5)]
    masks = join_masks([mask_runs(encode_mask(disk), "a") for disk in disks], (1024, 1024))
    assert masks.runs.dtype == torch.int32 and masks.runs.nbytes <= 5 * 4 * (2 * 500 + 2)


def test_an_rle_that_does_not_fill_its_mask_says_so() -> None:
    rle = encode_mask(np.eye(8, dtype=bool))
    with pytest.raises(BadSample, match="^a/1: mask 2: the run lengths do not fill 8 x 9 pixels; the RLE is torn"):
        mask_runs(rle | {"size": [8, 9]}, "a/1: mask 2")
