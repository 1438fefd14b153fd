"""What `pixel-sail compare` does: the benchmarks that two folders share, and their differences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixel_sail.durable import write_text
from pixel_sail.errors import UserError
from pixel_sail.evaluate import perbench, runner
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.kinds import tasks_of
from pixel_sail.evaluate.page.breakdown import groupings
from pixel_sail.evaluate.page.compare import TITLES, changed_cases, comparison, differences, rows, text_table
from pixel_sail.evaluate.predictions import PredictionFiles
from pixel_sail.weights.publish import read_metrics
from pixel_sail.writable import check_writable


def run(arguments: argparse.Namespace) -> None:
    folders = (arguments.first, arguments.second)
    check_writable(arguments.out.parent)
    metrics = [read_metrics(folder / runner.METRICS) for folder in folders]
    names, max_images = _shared(metrics, arguments.benchmark or [])
    pairs = {name: [_results(folder, name, arguments.data_root, max_images) for folder in folders] for name in names}
    groups = _groups({name: first for name, (first, _) in pairs.items()}, arguments.by)
    lines, parts = [], []
    for name, (first, second) in pairs.items():
        lines += rows(name, differences(first, second))
        for group, numbers in groups.get(name, {}).items():
            lines += rows(f"  {group}", differences(*([its[n] for n in numbers] for its in (first, second))))
        parts.append(changed_cases(name, first, second))
    print(text_table(lines))
    if arguments.by and (without := [name for name in names if name not in groups]):
        print(f"not divided by {arguments.by}, because nothing there tells the groups apart: {', '.join(without)}")
    models = [str(values["checkpoint"] or folder) for values, folder in zip(metrics, folders, strict=True)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, comparison(models, lines, parts))
    print(f"to look at: {arguments.out}")


def _shared(metrics: list[dict[str, Any]], wanted: list[str]) -> tuple[list[str], int | None]:
    """The benchmarks that both models were scored on, all or the `wanted` ones, and --max-images. Raises UserError."""
    limits = [values.get("made_with", {}).get("max_images") for values in metrics]
    if limits[0] != limits[1]:
        raise UserError(f"A was scored with --max-images {limits[0]}, B with {limits[1]}: score both in the same way")
    scored = [[name for name in values["benchmarks"] if name != perbench.KIND] for values in metrics]
    names = [name for name in scored[0] if name in scored[1]]
    wanted = [task for name in wanted for task in tasks_of(name)]
    for title, its in zip(TITLES, scored, strict=True):
        missing = [name for name in wanted if name not in its]
        if missing:
            raise UserError(f"{title} was not scored on {', '.join(missing)}: tools/test.py does that")
    if not names:
        raise UserError(f"no benchmark is in both: A has {', '.join(scored[0])}, B has {', '.join(scored[1])}")
    return wanted or names, limits[0]


def _groups(results: dict[str, list[CaseResult]], grouping: str | None) -> dict[str, dict[str, list[int]]]:
    """Benchmark -> group -> which cases are in it, as the report orders them, of the benchmarks that have the grouping.

    Raises UserError if none of them has it.
    """
    if grouping is None:
        return {}
    known = {name: groupings(its) for name, its in results.items()}
    groups = {name: its[grouping] for name, its in known.items() if grouping in its}
    if not groups:
        theirs = "; ".join(f"{name} has {', '.join(its) or 'none'}" for name, its in known.items())
        raise UserError(f"--by {grouping}: no benchmark tells such groups apart: {theirs}")
    return groups


def _results(folder: Path, name: str, data_root: Path, max_images: int | None) -> list[CaseResult]:
    benchmark = runner.open_benchmark(name, data_root, max_images)
    lines = runner.checked_lines(PredictionFiles(folder, benchmark).final, benchmark)
    return [benchmark.result(*pair) for pair in zip(benchmark.cases, lines, strict=True)]
