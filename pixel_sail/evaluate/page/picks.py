"""Which cases a report shows: the best, the worst, evenly spaced ones, and those with each flaw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pixel_sail.evaluate.case_result import FLAWS, CaseResult

EVENLY_SPACED = "evenly spaced"  # not chosen by score: these show what the model does on the whole


def pick(results: Sequence[CaseResult], count: int) -> dict[int, list[str]]:
    """Index of a case -> the names of the sets that it belongs to, in the order of the cases.

    Each set has `count` cases at most. All but the evenly spaced ones are of different images where that is possible.
    """
    sets: dict[str, Iterable[int]] = {EVENLY_SPACED: spaced(range(len(results)), count)}
    masks = [i for i, result in enumerate(results) if result.overlap is not None]
    if masks:
        by_iou = sorted(masks, key=lambda i: results[i].overlap.iou)
        there = [i for i in by_iou if results[i].target is not None]
        sets["best"] = _different(results, there[::-1], count)
        sets["worst"] = _different(results, there, count)
        for flaw in FLAWS:
            flawed = [i for i in masks if results[i].overlap.flaw == flaw]
            sets[flaw] = _different(results, spaced(flawed, len(flawed)), count)
    for name, wanted in (("right", True), ("wrong", False)):
        chosen = [i for i, result in enumerate(results) if result.right is wanted]
        sets[name] = _different(results, spaced(chosen, 4 * count), count)
    picked: dict[int, list[str]] = {}
    for name, members in sets.items():
        for i in members:
            picked.setdefault(i, []).append(name)
    return dict(sorted(picked.items()))


def spaced(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly spaced from the first on."""
    return list(indices[:: max(1, len(indices) // max(count, 1))][:count])


def _different(results: Sequence[CaseResult], order: Sequence[int], count: int) -> list[int]:
    """The first `count` in this order that are of different images, filled up with others if there are too few."""
    images: set[Path] = set()
    first: list[int] = []
    rest: list[int] = []
    for i in order:
        (rest if results[i].image in images else first).append(i)
        images.add(results[i].image)
        if len(first) == count:
            return first
    return (first + rest)[:count]
