"""Figures of the ablation: scores of every seed, steps with their intervals, training losses. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixel_sail import durable
from pixel_sail.errors import FileError
from pixel_sail.studies.ablation.plan import Run
from pixel_sail.studies.ablation.table import Results, Step
from pixel_sail.studies.plotting import new_panels, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels side by side
PANEL_INCHES = (4.2, 3.0)
SMOOTH_LINES = 9  # log lines averaged into one point of a loss curve
LOSSES = ("lm", "bce", "dice")  # every variant has them, with the same meaning
VERDICT_COLOURS = {"better": "tab:green", "leans better": "yellowgreen", "worse": "tab:red", "leans worse": "salmon"}


def write_plots(results: Results, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `ablation_scores.png`, `ablation_steps.png` and `ablation_losses.png`; plots without data are omitted.

    `runs`: the finished ones. Returns the paths.
    """
    figures = {
        "scores": _scores(results) if results.scores else None,
        "steps": _steps(results) if results.steps else None,
        "losses": _losses(results, runs) if runs else None,
    }
    return [
        save_figure(figure, folder / f"ablation_{name}.png") for name, figure in figures.items() if figure is not None
    ]


def _scores(results: Results) -> Figure:
    """One panel for each score: a thin line for each seed, and their mean and standard deviation."""
    figure, panels = new_panels(len(results.scores), COLUMNS, PANEL_INCHES)
    places = {variant: i for i, variant in enumerate(results.variants)}
    for panel, score in zip(panels, results.scores, strict=True):
        by_variant = results.values[score]
        for seed in sorted({seed for runs in by_variant.values() for seed in runs}):
            line = [(places[variant], runs[seed]) for variant, runs in by_variant.items() if seed in runs]
            panel.plot(*zip(*line, strict=True), color="0.7", linewidth=0.8, marker=".")
        for variant, spread in results.spreads[score].items():
            panel.errorbar(places[variant], spread.mean, spread.sd or 0.0, fmt="o", color="tab:blue", capsize=4)
        panel.set_title(score, fontsize=9)
        panel.set_xticks(range(len(places)), list(places), fontsize=7, rotation=20)
        panel.grid(axis="y", alpha=0.3)
    return figure


def _steps(results: Results) -> Figure:
    """One panel for each step: the difference of every score; seeds are dots, the interval of their mean is a bar."""
    pairs = list(dict.fromkeys((step.before, step.after) for step in results.steps))
    figure, panels = new_panels(len(pairs), COLUMNS, PANEL_INCHES)
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
    """One panel for each loss: each variant's running mean over steps, averaged over its seeds, and their range."""
    figure, panels = new_panels(len(LOSSES), COLUMNS, PANEL_INCHES)
    for variant in results.variants:
        logs = [_log(run.config.run.dir / "log.jsonl") for run in runs if run.variant == variant]
        logs = [log[: min(map(len, logs))] for log in logs]  # a line may have been removed
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


def _log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log. Raises FileError for one without the numbers that are drawn."""
    lines = durable.read_json_lines(path, number="step")
    for number, line in enumerate(lines, 1):
        for loss in LOSSES:
            if type(line.get(loss)) not in (int, float):
                shown = f"{line.get(loss)!r:.60}"
                raise FileError(f"{path}, line {number}: {loss} is {shown}, no number; mend or remove the line")
    return lines


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean of up to `SMOOTH_LINES` values around each value; fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    first, last = np.maximum(ends - 1 - SMOOTH_LINES // 2, 0), np.minimum(ends + SMOOTH_LINES // 2, len(values))
    return (sums[last] - sums[first]) / (last - first)
