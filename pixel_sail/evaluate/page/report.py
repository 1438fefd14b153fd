"""report.html of a folder of results: a table of all scores, and the section of each benchmark.

Sections are kept in `<out>/report/`, so that the scores of several calls come into one page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pixel_sail.durable import write_text
from pixel_sail.evaluate import runner
from pixel_sail.evaluate.benchmark import Benchmark, Line
from pixel_sail.evaluate.file_names import file_name
from pixel_sail.evaluate.page import html
from pixel_sail.evaluate.page.section import section
from pixel_sail.files import read_text
from pixel_sail.weights.publish import read_metrics

REPORT = "report.html"


def write_section(benchmark: Benchmark, lines: Sequence[Line], out: Path, facts: Mapping[str, Any]) -> None:
    """Keeps the section of a benchmark. `lines`: checked, in case order. `facts`: what they were made with."""
    results = [benchmark.result(case, line) for case, line in zip(benchmark.cases, lines, strict=True)]
    path = _section_file(out, benchmark.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, section(benchmark.name, results, facts))


def write_report(out: Path) -> Path:
    """The page of all benchmarks in `<out>/metrics.json`, with their kept sections. Returns its path."""
    metrics = read_metrics(out / runner.METRICS)
    scores, checkpoint = metrics["benchmarks"], metrics["checkpoint"]
    title = f"Scores of {checkpoint or 'a file of predictions'}"
    rows = [[name, *_numbers(values)] for name, values in scores.items()]
    parts = [f"<h1>{escape(title)}</h1>", _headline(rows), _definitions(metrics["definitions"])]
    files = [_section_file(out, name) for name in scores]
    parts += [read_text(path) for path in files if path.is_file()]
    path = out / REPORT
    write_text(path, html.page(title, "\n".join(parts)))
    return path


def _section_file(out: Path, benchmark: str) -> Path:
    return out / "report" / f"{file_name(benchmark)}.html"


def _numbers(scores: Mapping[str, Any]) -> tuple[str, str]:
    """The percentages of a benchmark, and its counts."""
    percentages = [f"{name} {value:.1f}" for name, value in scores.items() if isinstance(value, float)]
    counts = [f"{name} {value:,}" for name, value in scores.items() if type(value) is int]
    missing = [f"{name} -" for name, value in scores.items() if value is None]
    return " \u00b7 ".join([*percentages, *missing]), " \u00b7 ".join(counts)


def _headline(rows: Sequence[Sequence[str]]) -> str:
    lines = "".join(
        f'<tr><td><a href="#{escape(name)}">{escape(name)}</a></td><td>{escape(scores)}</td>'
        f'<td class="pale">{escape(counts)}</td></tr>'
        for name, scores, counts in rows
    )
    return f'<table class="scores"><tr><th>benchmark</th><th>scores, %</th><th>counts</th></tr>{lines}</table>'


def _definitions(definitions: Mapping[str, Mapping[str, str]]) -> str:
    text = runner.uses_of_definitions(definitions)
    return html.details("what the scores mean", html.listing(text)) if text else ""
