"""The clicks of simulated users: the next one on a mask that is wrong."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from pixel_sail.types import Click


def next_click(drawn: np.ndarray, truth: np.ndarray, clicked: np.ndarray | None = None) -> Click | None:
    """The click that mends the mask `drawn` (H, W) bool most; None if nothing is wrong, or all of it is `clicked`.

    The middle of the deeper error (`deeper_error`): its deepest pixel, of equal ones the first by row. `clicked` (H, W)
    bool: pixels that had a click, which get no second one. These are the clicks that benchmarks simulate since f-BRS
    (arXiv 2001.10331) and RITM (arXiv 2102.06583).
    """
    depths, positive = deeper_error(drawn, truth, clicked)
    if depths.max() <= 0:
        return None
    y, x = np.unravel_index(depths.argmax(), depths.shape)
    return Click(int(x), int(y), positive)


def random_clicks(drawn: np.ndarray, truth: np.ndarray, number: int, rng: np.random.Generator) -> list[Click]:
    """At most `number` clicks on the deeper error of the mask `drawn` (H, W) bool; none where nothing is wrong.

    As RITM trains: at random among the pixels that are more than half as deep in the error as its deepest.
    """
    depths, positive = deeper_error(drawn, truth)
    inner = np.flatnonzero(depths > depths.max() / 2)
    chosen = rng.choice(inner, size=min(number, len(inner)), replace=False) if len(inner) else []
    return [Click(int(at % truth.shape[1]), int(at // truth.shape[1]), positive) for at in chosen]


def deeper_error(drawn: np.ndarray, truth: np.ndarray, clicked: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
    """The depth (H, W) float64 of each pixel in the deeper of two errors, and whether that is what is missed.

    The errors are what `drawn` misses and what is false in it; if both are equally deep, the false one. The depth of a
    pixel is its Euclidean distance to the nearest pixel outside of the error, where the border of the image is outside;
    0 outside, and at pixels that are `clicked`.
    """
    missed, false = _depths(truth & ~drawn), _depths(drawn & ~truth)
    if clicked is not None:
        missed, false = missed * ~clicked, false * ~clicked
    positive = bool(missed.max() > false.max())
    return (missed if positive else false), positive


def _depths(error: np.ndarray) -> np.ndarray:
    depths = np.zeros(error.shape)
    if error.any():  # nothing outside of its bounding box is nearer than the box's own border
        rows, columns = (np.flatnonzero(error.any(axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        depths[box] = distance_transform_edt(np.pad(error[box], 1))[1:-1, 1:-1]
    return depths
