"""curves.png of a run folder: losses, norm of the gradients, learning rate and scores over the steps."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixel_sail.durable import PARTIAL, read_json_lines, replaced_file
from pixel_sail.interrupts import finish_first
from pixel_sail.losses import LOSS_COUNTS, SCORE_COUNTS

CURVES = "curves.png"
LOG, VALIDATION = "log.jsonl", "validation.jsonl"
_DRAWN = ("loss", *LOSS_COUNTS, *SCORE_COUNTS, "grad_norm", "lr")  # and the losses of experts
MIN_LINES = 10  # of the log; fewer points are no curve
_SMOOTHED_LINES = 9  # of the log, in the mean over which a curve is drawn strongly
_PANEL_INCHES = (5.0, 3.0)


def can_draw() -> bool:
    """Whether matplotlib is there (extra `plot`)."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(run_dir: Path) -> Path | None:
    """Draws `<run_dir>/curves.png` from the log and returns its path; None for a short log, or without matplotlib."""
    curves = _training(run_dir / LOG)
    if len(curves.get("loss", ())) < MIN_LINES or not can_draw():
        return None
    curves |= _scores(run_dir / VALIDATION)
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure((_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, points) in zip(panels, curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        is_long = len(values) > 2 * _SMOOTHED_LINES
        panel.plot(steps, values, color="C0", alpha=0.35 if is_long else 1, marker="" if is_long else ".")
        if is_long:
            panel.plot(steps, _smoothed(values), color="C0")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    path = run_dir / CURVES
    with replaced_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)
    return path


def draw_if_behind(run_dir: Path) -> None:
    """Draws the curves of a finished run again if it was killed before it had drawn its last lines."""
    drawn, partial = run_dir / CURVES, run_dir / f"{CURVES}{PARTIAL}"
    lines = [path.stat().st_mtime_ns for path in (run_dir / LOG, run_dir / VALIDATION) if path.exists()]
    is_behind = not drawn.exists() or drawn.stat().st_mtime_ns < max(lines, default=0)
    if is_behind or partial.exists():
        with finish_first("the curves"):  # a signal has nothing left to stop
            draw_curves(run_dir)


def _training(path: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in read_json_lines(path, number="step"):
        for name, value in line.items():
            if (name in _DRAWN or name.startswith("distill_")) and type(value) in (int, float):
                curves[name].append((line["step"], value))
    return dict(curves)


def _scores(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The first score in percent of each benchmark: cIoU, METEOR, accuracy."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in read_json_lines(path, number="step"):
        for benchmark, scores in _members(line.get("benchmarks")):
            first: tuple[str, Any] | None = next(((n, v) for n, v in _members(scores) if type(v) is float), None)
            if first is not None:
                curves[f"{benchmark}: {first[0]}"].append((line["step"], first[1]))
    return dict(curves)


def _members(value: Any) -> Iterable[tuple[str, Any]]:
    """Of an object; none of what is no object in a file that somebody has edited."""
    return value.items() if isinstance(value, dict) else ()


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """The mean over the _SMOOTHED_LINES lines around each, fewer at the ends."""
    half = _SMOOTHED_LINES // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
