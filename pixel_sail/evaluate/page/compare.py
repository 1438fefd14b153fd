"""Two models on the same cases: the differences of their scores, how sure they are, and the cases that changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.page import html
from pixel_sail.evaluate.page.picks import EVENLY_SPACED, spaced
from pixel_sail.evaluate.page.section import CASES_OF_A_SET, cards, figures_of, images_of, text, verdict

TITLES = ("A", "B")
HEAD = ("benchmark", "score", *TITLES, "B - A", "95 % interval", "")
RESAMPLES = 2000
CONFIDENCE = 0.95
_AT_A_TIME = 100  # resamples in memory


@dataclass(frozen=True)
class Difference:
    """A score of two models on the same cases, in percent, and the interval of the difference second - first."""

    score: str
    first: float
    second: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def differences(first: Sequence[CaseResult], second: Sequence[CaseResult]) -> list[Difference]:
    """The differences of cIoU, gIoU and the share of right cases, as far as the cases have them.

    Intervals: paired bootstrap over images, whose cases stay together because they are not independent; percentiles of
    RESAMPLES resamples, seed 0.
    """
    numbers = {path: i for i, path in enumerate(dict.fromkeys(result.image for result in first))}
    images = np.array([numbers[result.image] for result in first])
    found = []
    for score, parts_of in _SCORES.items():
        parts = [[parts_of(result) for result in results] for results in (first, second)]
        if any(None in pairs for pairs in parts):
            continue
        sums = np.stack([_per_image(np.array(pairs, dtype=np.float64), images, len(numbers)) for pairs in parts])
        before, after = _percentages(sums.sum(1)[:, None])[:, 0]
        low, high = np.quantile(_resampled(sums), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found.append(Difference(score, float(before), float(after), float(low), float(high)))
    return found


def rows(name: str, found: Sequence[Difference]) -> list[list[str]]:
    """The rows of a benchmark in a table: benchmark, score, first, second, difference, interval, is it clear."""
    return [
        [
            name,
            each.score,
            f"{each.first:.1f}",
            f"{each.second:.1f}",
            f"{each.second - each.first:+.1f}",
            f"{each.low:+.1f} to {each.high:+.1f}",
            "" if each.is_clear else "may be chance",
        ]
        for each in found
    ]


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Rows of `rows` for the console."""
    table = [HEAD, *lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def comparison(models: Sequence[str], lines: Sequence[Sequence[str]], parts: Sequence[str]) -> str:
    """The whole page. `models`: the checkpoints of A and B; `lines` of `rows`; `parts` of `changed_cases`."""
    which = "".join(f"<p><b>{title}</b>: {escape(name)}</p>" for title, name in zip(TITLES, models, strict=True))
    body = [f"<h1>Comparison of two models</h1>{which}", html.table(HEAD, lines), *parts]
    return html.page("Comparison of two models", "\n".join(body))


def changed_cases(name: str, first: Sequence[CaseResult], second: Sequence[CaseResult]) -> str:
    """The HTML of the cases that changed most in each direction, and of evenly spaced ones."""
    change = [_value(b) - _value(a) for a, b in zip(first, second, strict=True)]
    order = sorted(range(len(first)), key=change.__getitem__)
    sets = {
        "better": [i for i in reversed(order) if change[i] > 0][:CASES_OF_A_SET],
        "worse": [i for i in order if change[i] < 0][:CASES_OF_A_SET],
        EVENLY_SPACED: spaced(range(len(first)), CASES_OF_A_SET),
    }
    picked = sorted({i for members in sets.values() for i in members})
    shown = [(_pair(first[i], second[i]), [title for title, members in sets.items() if i in members]) for i in picked]
    return f"<section><h2>{escape(name)}</h2>{cards(shown, tuple(sets))}</section>"


def _pair(first: CaseResult, second: CaseResult) -> str:
    """The target and the mask of each model, or the one image; then what each says."""
    images, others = images_of(first), images_of(second)
    if len(images) > 1:
        notes = [
            f"{title}: {shown[-1][0].removeprefix('prediction, ')}"
            for title, shown in zip(TITLES, (images, others), strict=True)
        ]
        images = [images[1], (notes[0], images[-1][1]), (notes[1], others[-1][1])]
    figures = figures_of(images, first)
    lines = [f"<b>{text(first.question)}</b>"]
    lines += [
        f'<span class="pale">{text(title)}:</span> {text(result.answer)} {verdict(result)}'
        for title, result in zip(TITLES, (first, second), strict=True)
    ]
    if first.right_answer:
        lines.append(f'<span class="pale">right:</span> {text(first.right_answer)}')
    return f'<div class="images">{figures}</div>{"".join(f"<p>{line}</p>" for line in lines)}'


def _value(result: CaseResult) -> float:
    return result.overlap.iou if result.overlap is not None else float(bool(result.right))


def _per_image(parts: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """(cases, 2) parts and wholes -> their sums by image, (count, 2). `images`: (cases,) index of each image."""
    sums = np.zeros((count, 2))
    np.add.at(sums, images, parts)
    return sums


def _resampled(sums: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) differences in percent. `sums`: (2 models, images, part and whole)."""
    rng, count = np.random.default_rng(0), sums.shape[1]
    found = []
    for _ in range(RESAMPLES // _AT_A_TIME):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_AT_A_TIME).astype(np.float64)
        found.append(np.diff(_percentages(weights @ sums), axis=0)[0])
    return np.concatenate(found)


def _percentages(sums: np.ndarray) -> np.ndarray:
    """(2, n, part and whole) -> (2, n) percentages; 0 where the whole is 0."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1e-9)


def _ciou(result: CaseResult) -> tuple[float, float] | None:
    return None if result.overlap is None else (result.overlap.intersection_px, result.overlap.union_px)


def _giou(result: CaseResult) -> tuple[float, float] | None:
    return None if result.overlap is None else (result.overlap.iou, 1)


def _right(result: CaseResult) -> tuple[float, float] | None:
    return None if result.right is None else (result.right, 1)


_SCORES: dict[str, Callable[[CaseResult], tuple[float, float] | None]] = {
    "cIoU": _ciou,
    "gIoU": _giou,
    "right": _right,
}
