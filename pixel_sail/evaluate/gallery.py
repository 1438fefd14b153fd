"""A page of images beside the numbers: question, ground truth and prediction of evenly spaced cases."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.evaluate.benchmark import Benchmark, identity
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.predictions import PredictionFiles, read_lines
from pixel_sail.evaluate.show import shown
from pixel_sail.serve.visualize import SheetRow, cards, contact_sheet, save_png

MAX_SHOWN = 400  # cases of a page, which is an image in memory


def write_gallery(benchmark: Benchmark, out: Path, count: int) -> Path:
    """Writes `<out>/gallery/<benchmark>.png` with `count` predicted cases, evenly spaced: not cherry-picked."""
    predictions = PredictionFiles(out, benchmark).final
    lines = {identity(line, benchmark): line for line in read_lines(predictions, benchmark)}
    step = max(1, len(benchmark.cases) // count)
    cases = benchmark.cases[::step][:count]
    tiles = [shown(benchmark.result(case, lines[identity(case, benchmark)])) for case in cases]
    path = out / "gallery" / f"{file_name(benchmark.name)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(contact_sheet(tiles) if all(isinstance(tile, SheetRow) for tile in tiles) else cards(tiles), path)
    return path
