"""The ablation as images: scores of every seed, steps with their intervals, training losses. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixel_sail.studies.ablation.plan import Run
from pixel_sail.studies.ablation.table import Results, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels side by side
PANEL_INCHES = (4.2, 3.0)
SMOOTH_LINES = 9  # log lines that one point of a loss curve averages
LOSSES = ("lm", "bce", "dice")  # those that every variant has, with the same meaning
VERDICT_COLOURS = {"better": "tab:green", "leans better": "yellowgreen", "worse": "tab:red", "leans worse": "salmon"}


def why_no_plots() -> str | None:
    """What is missing and how to get it; None where nothing is."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plots: install matplotlib (pip install 'pixel_sail[plot]')"
    return None


def write_plots(results: Results, runs: Sequence[Run], folder: Path) -> list[Path]:
    """`ablation_scores.png`, `ablation_steps.png`, `ablation_losses.png`; a plot of nothing yet is left out.

    `runs`: the finished ones.
    """
    figures = {
        "scores": _scores(results) if results.scores else None,
        "steps": _steps(results) if results.steps else None,
        "losses": _losses(results, runs) if runs else None,
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"ablation_{name}.png"
            figure.savefig(path, dpi=110)
            written.append(path)
    return written


def _scores(results: Results) -> Figure:
    """One panel a score: a thin line for each seed, mean and standard deviation over them."""
    figure, panels = _panels(len(results.scores))
    places = {variant: i for i, variant in enumerate(results.variants)}
    for panel, score in zip(panels, results.scores, strict=True):
        by = results.values[score]
        for seed in sorted({seed for runs in by.values() for seed in runs}):
            line = [(places[v], runs[seed]) for v, runs in by.items() if seed in runs]
            panel.plot(*zip(*line, strict=True), color="0.7", linewidth=0.8, marker=".")
        for variant, spread in results.spreads[score].items():
            panel.errorbar(places[variant], spread.mean, spread.sd or 0.0, fmt="o", color="tab:blue", capsize=4)
        panel.set_title(score, fontsize=9)
        panel.set_xticks(range(len(places)), list(places), fontsize=7, rotation=20)
        panel.grid(axis="y", alpha=0.3)
    return figure


def _steps(results: Results) -> Figure:
    """One panel a step: the difference of every score, each seed a dot, the interval of their mean a bar."""
    pairs = list(dict.fromkeys((step.before, step.after) for step in results.steps))
    figure, panels = _panels(len(pairs))
    for panel, (before, after) in zip(panels, pairs, strict=True):
        steps = [step for step in results.steps if (step.before, step.after) == (before, after)]
        for place, step in enumerate(steps):
            _draw_step(panel, place, step)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(steps)), [step.score for step in steps], fontsize=7)
        panel.invert_yaxis()
        panel.set_title(f"{before} → {after}", fontsize=9)
    return figure


def _draw_step(panel: Axes, place: int, step: Step) -> None:
    colour = VERDICT_COLOURS.get(step.verdict, "tab:gray")
    if step.interval is not None:
        panel.plot(step.interval, [place, place], color=colour, linewidth=3, alpha=0.6)
    dots = list(step.differences.values())
    panel.plot(dots, [place] * len(dots), ".", color="black", markersize=4)
    panel.plot(step.mean, place, "|", color=colour, markersize=12)


def _losses(results: Results, runs: Sequence[Run]) -> Figure:
    """One panel a loss: for each variant the running mean over steps, averaged over its seeds, and their range."""
    figure, panels = _panels(len(LOSSES))
    for variant in results.variants:
        logs = [_read_log(run.config.run.dir / "log.jsonl") for run in runs if run.variant == variant]
        steps = [line["step"] for line in logs[0]] if logs else []
        for panel, loss in zip(panels, LOSSES, strict=True):
            if logs:
                curves = np.stack([_smooth([line[loss] for line in log]) for log in logs])
                panel.plot(steps, curves.mean(0), label=variant, linewidth=1.2)
                panel.fill_between(steps, curves.min(0), curves.max(0), alpha=0.15)
    for panel, loss in zip(panels, LOSSES, strict=True):
        panel.set_title(loss, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
    panels[0].legend(fontsize=7)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # not pyplot: no window system, nothing global

    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Means of the values around each, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    first, last = np.maximum(ends - 1 - SMOOTH_LINES // 2, 0), np.minimum(ends + SMOOTH_LINES // 2, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
