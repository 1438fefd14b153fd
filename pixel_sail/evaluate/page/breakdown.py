"""Scores of groups of cases: by kind of expression, size of the object, and whatever else a benchmark tells apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pixel_sail.evaluate.case_result import FLAWS, SIZES, CaseResult

BINS = 10  # of the IoU histogram


@dataclass(frozen=True)
class GroupScores:
    """The cases of one group. Percentages; None where no case of the group has such a score."""

    name: str
    cases: int
    ciou: float | None
    giou: float | None
    right: float | None  # share of right masks (IoU of 0.5 or more) or answers
    flaws: dict[str, float]  # share of the cases with a mask that have each flaw


def group_scores(name: str, results: Sequence[CaseResult]) -> GroupScores:
    """The scores of some cases."""
    overlaps = [result.overlap for result in results if result.overlap is not None]
    union_px = sum(overlap.union_px for overlap in overlaps)
    judged = [result.right for result in results if result.right is not None]
    flaws = [overlap.flaw for overlap in overlaps]
    return GroupScores(
        name=name,
        cases=len(results),
        ciou=_percent(sum(overlap.intersection_px for overlap in overlaps), union_px),
        giou=_percent(sum(overlap.iou for overlap in overlaps), len(overlaps)),
        right=_percent(sum(judged), len(judged)),
        flaws={flaw: 100 * flaws.count(flaw) / len(flaws) for flaw in FLAWS if flaws.count(flaw)},
    )


def groupings(results: Sequence[CaseResult]) -> dict[str, dict[str, list[int]]]:
    """Grouping -> group -> the numbers of its cases: sizes and numbers in their order, others with most cases first."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, result in enumerate(results):
        for grouping, group in result.groups.items():
            found[grouping][group].append(number)
    return {grouping: dict(sorted(groups.items(), key=_order)) for grouping, groups in found.items()}


def breakdown(results: Sequence[CaseResult]) -> dict[str, list[GroupScores]]:
    """Grouping -> its groups, in the order of `groupings`. Groupings with one group alone are left out."""
    return {
        grouping: [group_scores(name, [results[n] for n in numbers]) for name, numbers in groups.items()]
        for grouping, groups in groupings(results).items()
        if len(groups) > 1
    }


def _order(group: tuple[str, list[int]]) -> tuple[int, int, str]:
    name, numbers = group
    if name in SIZES:
        return SIZES.index(name), 0, ""
    return (0, 0, name) if name[:1].isdecimal() else (0, -len(numbers), "")


def iou_histogram(results: Sequence[CaseResult]) -> list[int]:
    """The number of cases in each of BINS equal bins of IoU, the last of which includes 1; empty without masks.

    Only cases where something is there: the others have an IoU of 0 or 1.
    """
    ious = [result.overlap.iou for result in results if result.overlap is not None and result.overlap.target_px]
    counts = [0] * BINS
    for iou in ious:
        counts[min(int(iou * BINS), BINS - 1)] += 1
    return counts if ious else []


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None
