"""Figures of the studies. Needs matplotlib, which is imported only when a figure is drawn."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def why_no_plots() -> str | None:
    """What is missing and how to install it; None where plots can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plots: install matplotlib (pip install 'pixel_sail[plot]')"
    return None


def new_panels(count: int, columns: int, panel_inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of (width, height) inches, at most `columns` of them side by side."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure((panel_inches[0] * columns, panel_inches[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG and return `path`."""
    figure.savefig(path, dpi=110)
    return path
