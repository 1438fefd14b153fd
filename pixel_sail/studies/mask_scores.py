"""Are the scores of a model's masks worth something? Presence and scores against the truth, beside a constant.

Of lines with `presence` and `score` (evaluate/scored.py). Presence is compared with whether there is a target, in all
cases. The score of a mask, the IoU to expect of it, is compared with its IoU, in the cases that are answered with a
mask; the IoU of a mask where nothing is there is 0.

    AUROC       the share of pairs of a positive and a negative that are in the right order, ties half (Mann-Whitney);
                of presence: "nothing there" by 1 - presence; of the score: an IoU above 0.5
    Spearman    Pearson's correlation of the ranks of score and IoU, ties sharing their mean rank
    ECE         expected calibration error with bins of equal mass (arXiv 1904.01685): the mean over the bins of the
                distance between the mean score and the mean outcome, weighted by the cases of a bin
    MSE         mean squared error of the score (for presence: the Brier score)

The constant beside them is the mean outcome, of all constants the best: it orders nothing (AUROC 50, Spearman 0), and
is calibrated by construction (ECE 0), so that what it does not know shows in its MSE alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate.benchmark import Benchmark, Line
from pixel_sail.studies.plotting import new_panels, save_figure

BINS = 10
RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Scored:
    """What a model said of some cases, and what is true."""

    presence: np.ndarray  # (n,) float, of each case
    there: np.ndarray  # (n,) bool: it has a target
    score: np.ndarray  # (m,) float, of each case that is answered with a mask
    iou: np.ndarray  # (m,) float

    @classmethod
    def of(cls, benchmark: Benchmark, lines: Sequence[Line], where: str) -> Scored:
        """`lines`: already checked, in case order. Raises DatasetError, beginning with `where`, without scores."""
        presence, there, score, iou = [], [], [], []
        for case, line in zip(benchmark.cases, lines, strict=True):
            overlap = benchmark.result(case, line).overlap
            if overlap is None:
                raise DatasetError(f"{where}: {benchmark.name} scores no masks; give a benchmark that does")
            presence.append(_probability(line, "presence", where))
            there.append(overlap.target_px > 0)
            if overlap.predicted_px:
                score.append(_probability(line, "score", where))
                iou.append(overlap.iou)
        return cls(np.array(presence), np.array(there, dtype=bool), np.array(score), np.array(iou))

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        columns = zip(*((part.presence, part.there, part.score, part.iou) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def result(self) -> dict[str, float | int | None]:
        """Numbers of `presence` and `score`; those of the constant are `*_constant`. None where undefined."""
        values: dict[str, float | int | None] = {"cases": len(self.presence), "absent": int((~self.there).sum())}
        values["presence_auroc"] = auroc(1 - self.presence, ~self.there)
        values |= _calibration("presence", self.presence, self.there.astype(float)) | {"masks": len(self.score)}
        values["score_spearman"] = spearman(self.score, self.iou)
        values["score_auroc"] = auroc(self.score, self.iou > RIGHT_IOU)
        return values | _calibration("score", self.score, self.iou)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The probability that a positive has a higher score than a negative, ties half. None if one kind is missing."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    below = ranks(scores)[positive].sum() - positives * (positives + 1) / 2
    return float(below / (positives * negatives))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation; None if one of them has a single value."""
    if not len(a) or a.min() == a.max() or b.min() == b.max():
        return None
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def bins(scores: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(bins, 3): mean score, mean outcome and cases of at most BINS bins of equal mass, by rising score.

    Equal scores are in one bin: their order means nothing.
    """
    number = ((ranks(scores) - 0.5) / max(len(scores), 1) * BINS).astype(int)
    parts = [number == n for n in np.unique(number)]
    return np.array([(scores[part].mean(), outcomes[part].mean(), part.sum()) for part in parts]).reshape(-1, 3)


def calibration_error(scores: np.ndarray, outcomes: np.ndarray) -> float | None:
    """ECE; None without cases."""
    if not len(scores):
        return None
    score, outcome, cases = bins(scores, outcomes).T
    return float((np.abs(score - outcome) * cases).sum() / cases.sum())


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a line for each number and a column for each benchmark; in brackets: the best constant."""
    rows = [f"| in brackets: a constant | {' | '.join(results)} |", "|" + " --- |" * (1 + len(results))]
    for text, cell in (
        ("cases", lambda v: f"{v['cases']:,}"),
        ("with nothing there", lambda v: f"{v['absent']:,}"),
        ("presence: AUROC of nothing there", lambda v: f"{_shown(v['presence_auroc'], 100)} (50)"),
        ("presence: ECE, %", lambda v: f"{_shown(v['presence_ece'], 100)} (0)"),
        ("presence: MSE", lambda v: f"{_shown(v['presence_mse'])} ({_shown(v['presence_mse_constant'])})"),
        ("cases answered with a mask", lambda v: f"{v['masks']:,}"),
        ("score: Spearman with IoU", lambda v: f"{_shown(v['score_spearman'])} (0)"),
        (f"score: AUROC of IoU > {RIGHT_IOU}", lambda v: f"{_shown(v['score_auroc'], 100)} (50)"),
        ("score: ECE, %", lambda v: f"{_shown(v['score_ece'], 100)} (0)"),
        ("score: MSE", lambda v: f"{_shown(v['score_mse'])} ({_shown(v['score_mse_constant'])})"),
    ):
        rows.append(f"| {text} | {' | '.join(map(cell, results.values()))} |")
    return "\n".join(rows)


def draw(scored: dict[str, Scored], path: Path) -> Path:
    """A reliability plot: the mean outcome over the mean score, bin by bin, of presence and of the scores."""
    figure, panels = new_panels(2, 2, (4.6, 4.4))
    for panel, kind in zip(panels, ("presence", "score"), strict=True):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for name, part in scored.items():
            said = part.presence if kind == "presence" else part.score
            score, outcome, _ = bins(said, part.there if kind == "presence" else part.iou).T
            panel.plot(score, outcome, marker="o", markersize=4, label=name)
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=f"mean {kind} of a tenth of the cases")
        panel.set_ylabel("share of cases with a target" if kind == "presence" else "mean IoU")
        panel.legend(fontsize=8)
    return save_figure(figure, path)


def _calibration(name: str, scores: np.ndarray, outcomes: np.ndarray) -> dict[str, float | None]:
    known = len(scores) > 0
    return {
        f"{name}_ece": calibration_error(scores, outcomes),
        f"{name}_mse": float(((scores - outcomes) ** 2).mean()) if known else None,
        f"{name}_mse_constant": float(outcomes.var()) if known else None,
    }


def _probability(line: Line, name: str, where: str) -> float:
    value = line.get(name)
    if value is None:
        raise DatasetError(
            f"{where}: a line has no {name}: its model has no score head (architecture.mask_scores), or the file is of "
            "an earlier version"
        )
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and 0 <= value <= 1):
        raise DatasetError(f"{where}: {name} is {value!r:.40}, expected a number from 0 to 1")
    return float(value)


def _shown(value: float | None, factor: float = 1) -> str:
    if value is None:
        return "-"
    return f"{value * factor:.1f}" if factor > 1 else f"{value:.3f}"
