"""Opens benchmarks by name, and scores a model on them over any number of processes.

An interrupted run is continued where it stopped; see `pixel_sail.evaluate.predictions.PredictionFiles`.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import append_json_line, write_json
from pixel_sail.errors import UserError
from pixel_sail.evaluate import (
    clicks,
    concepts,
    dlc_bench,
    gar_bench,
    gcg,
    gseval,
    jsonl,
    perbench,
    reason_seg,
    ref_l4,
    referring,
    region,
)
from pixel_sail.evaluate.benchmark import Benchmark, BenchmarkKind, Line, Options, by_image, calls, identity, is_empty
from pixel_sail.evaluate.pixfoundation import benchmark as pixfoundation
from pixel_sail.evaluate.predictions import PredictionFiles, in_case_order, read_lines
from pixel_sail.interrupts import Stopped, finish_first
from pixel_sail.model.generation import NotFinite
from pixel_sail.ranks import raise_together, together
from pixel_sail.types import BadSample

METRICS = "metrics.json"  # the file of scores in a folder of results
TABLE_COLUMNS = 100
BENCHMARKS: tuple[BenchmarkKind, ...] = (
    referring.BENCHMARK,
    perbench.BENCHMARK,
    region.BENCHMARK,
    gcg.BENCHMARK,
    reason_seg.BENCHMARK,
    concepts.BENCHMARK,
    pixfoundation.BENCHMARK,
    jsonl.BENCHMARK,
    gseval.BENCHMARK,
    ref_l4.BENCHMARK,
    dlc_bench.BENCHMARK,
    gar_bench.BENCHMARK,
    clicks.BENCHMARK,
)


def open_benchmark(
    name: str, data_root: Path, max_images: int | None = None, options: Options | None = None
) -> Benchmark:
    """The benchmark of a name (see `BENCHMARKS`), of its first `max_images` images. Raises DatasetError."""
    kind = next((kind for kind in BENCHMARKS if name.partition(":")[0] in kind.names.prefixes), None)
    if kind is None:
        raise DatasetError(f"unknown benchmark {name!r}; known are {', '.join(kind.names.form for kind in BENCHMARKS)}")
    benchmark = kind.open(data_root, name, options or Options())
    if len({identity(case, benchmark) for case in benchmark.cases}) != len(benchmark.cases):
        raise DatasetError(f"{data_root}: a case of {name} ({', '.join(benchmark.id_fields)}) occurs twice")
    if not benchmark.cases:
        first = f"; first: {benchmark.problems[0]}" if benchmark.problems else ""
        raise DatasetError(f"{name} has no case under {data_root} that can be scored{first}")
    images = by_image(benchmark.cases)[:max_images]
    return replace(benchmark, cases=tuple(case for cases in images for case in cases))


def fingerprint(checkpoint: Path, **settings: Any) -> dict[str, Any]:
    """What predictions depend on, as plain JSON values: sizes and times of the checkpoint's files, and settings."""
    files = sorted(path for path in checkpoint.glob("*") if path.is_file())
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"checkpoint": str(checkpoint), "files": stats, "settings": settings}


def run_benchmark(predictor: Any, benchmark: Benchmark, out: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """Predicts the missing cases, shared among the processes. Returns the scores on rank 0, None on the others.

    `made_with` (plain JSON values, see `fingerprint`): earlier predictions in `out` are continued if they were made
    with the same. If torch.distributed is initialized, every process must call this, and what fails on one of them is
    raised on all. Raises BadSample for an unreadable image, NotFinite for a model whose numbers are not finite, and
    Stopped after a signal; the predictions made so far stay.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    files = PredictionFiles(out, benchmark)
    together(lambda: files.prepare(made_with) if is_first else None)
    done = {identity(line, benchmark) for line in read_lines(files.partial, benchmark)}
    todo = [cases for cases in calls(benchmark) if identity(cases[0], benchmark) not in done]
    signals = _predict(predictor, benchmark, files, todo)
    if signals:
        message = f"stopped after {files.predicted()} of {len(benchmark.cases)} cases of {benchmark.name}"
        raise Stopped(signals[0], f"{message}; they are kept, and the same command goes on")
    return together(lambda: score_lines(benchmark, files.finish()) if is_first else None)


def _predict(predictor: Any, benchmark: Benchmark, files: PredictionFiles, todo: list[list[Any]]) -> list[int]:
    """Predicts this process's share of `todo`. Returns the signals that ended it, of all processes.

    Whoever fails or is told to stop leaves the file `stop`, at which the others look between two calls: nobody waits
    for what will not come.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    problem: Exception | None = None
    with finish_first("these images") as pending:
        try:
            bar_off = None if rank == 0 else True  # None: on a terminal only
            for cases in tqdm(todo[rank::world], desc=benchmark.name, unit="call", disable=bar_off):
                if pending.number or files.stop.exists():
                    break
                for line in _lines(predictor, benchmark, cases):
                    append_json_line(files.part(rank), line)
        except Exception as error:  # of whatever kind: the other processes must hear of it
            problem = error
    if world > 1 and (problem or pending.number):
        with contextlib.suppress(OSError):  # on a full disk: then they hear of it at their end
            files.stop.touch()
    try:
        raise_together(problem)  # here all processes meet
    finally:
        if rank == 0:
            files.stop.unlink(missing_ok=True)
    signals: list[int] = [pending.number]
    if world > 1:
        signals = [0] * world
        dist.all_gather_object(signals, pending.number)
    return [number for number in signals if number]


def _lines(predictor: Any, benchmark: Benchmark, cases: list[Any]) -> list[Line]:
    """The lines of one call. An error says which images it was about, and what to do."""
    images = ", ".join(str(path) for path in dict.fromkeys(case.image for case in cases))
    try:
        return benchmark.predict(predictor, cases)
    except BadSample as error:
        raise BadSample(
            f"{benchmark.name}: {error}; the predictions so far are kept: put the image back, or leave its annotations "
            "out, and repeat the command"
        ) from None
    except NotFinite as error:
        raise NotFinite(f"{benchmark.name}, {images}: {error}") from None
    except torch.OutOfMemoryError:
        raise UserError(
            f"{benchmark.name}, {images}: the memory of the GPU is used up; the predictions so far are kept: repeat "
            "the command with --precision bf16, or where no other process uses the GPU"
        ) from None


def score_lines(benchmark: Benchmark, lines: list[Line]) -> dict[str, Any]:
    """The scores of checked lines in case order, and `empty`, their number, if none of them says or shows anything."""
    scores = benchmark.score(lines)
    return scores | ({"empty": len(lines)} if all(map(is_empty, lines)) else {})


def score_file(
    predictions: Path, name: str, data_root: Path, max_images: int | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Scores of a predictions file of any model.

    Raises DatasetError for missing, repeated or unknown cases, BadSample for a mask that does not fit its image.
    """
    benchmark = open_benchmark(name, data_root, max_images, options)
    return score_lines(benchmark, checked_lines(predictions, benchmark))


def checked_lines(predictions: Path, benchmark: Benchmark) -> list[Line]:
    """The lines of a predictions file of any model in case order. Raises DatasetError, BadSample: see `score_file`."""
    return in_case_order(benchmark, read_lines(predictions, benchmark), str(predictions))


def definitions(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Benchmark -> score -> its definition, and whose definition it is in brackets; of the scores in `results`."""
    defined = {}
    for name, scores in results.items():
        kind = next((kind for kind in BENCHMARKS if name.partition(":")[0] in kind.names.prefixes), None)
        applying = [definition for definition in kind.definitions if definition.of(name)] if kind else []
        texts = {score: f"{d.text} [{d.source}]" for d in applying for score in d.scores if score in scores}
        if texts:
            defined[name] = texts
    return defined


def definitions_text(results: dict[str, dict[str, Any]]) -> str:
    """The definitions of the scores in a table, each once for all benchmarks, in lines of TABLE_COLUMNS at most."""
    lines = [f"{names}: {text}" for names, text in uses_of_definitions(definitions(results))]
    indents = {"initial_indent": "  ", "subsequent_indent": "      ", "break_long_words": False}
    return "\n".join(textwrap.fill(line, TABLE_COLUMNS, **indents) for line in lines)


def uses_of_definitions(defined: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """(the scores that it defines, with their benchmarks; the definition) of each. `defined`: see `definitions`."""
    uses: dict[str, list[str]] = {}
    for name, scores in defined.items():
        for text in dict.fromkeys(scores.values()):
            shared = ", ".join(score for score in scores if scores[score] == text)
            uses.setdefault(text, []).append(f"{name} {shared}")
    return [("; ".join(names), text) for text, names in uses.items()]


def write_metrics(
    out: Path,
    checkpoint: Path | None,
    results: dict[str, dict[str, Any]],
    defined: dict[str, dict[str, str]] | None = None,
    made_with: dict[str, Any] | None = None,
    runs: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """`metrics.json`: {"checkpoint": path or null, "benchmarks": {name: scores}, "definitions": {name: {score: text}}}.

    `checkpoint`: None for a scored file. `defined`: the definitions, if the names in `results` are no benchmarks.
    `made_with`: what the scores depend on besides, as plain JSON values. `runs`: benchmark -> when, by which code
    and on which data it was scored.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / METRICS
    values = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "benchmarks": results,
        "definitions": definitions(results) if defined is None else defined,
        "made_with": made_with,
        "runs": runs,
    }
    absent = [name for name in ("made_with", "runs") if values[name] is None]
    write_json(path, {name: value for name, value in values.items() if name not in absent}, indent=2)
    return path


def table(results: dict[str, dict[str, Any]]) -> str:
    """The scores of each benchmark behind its name, percentages with one decimal, in lines of TABLE_COLUMNS at most."""
    indent = min(max(map(len, results), default=0), TABLE_COLUMNS // 3) + 2
    lines = []
    for name, scores in results.items():
        line = name.ljust(indent) if len(name) + 2 <= indent else None
        if line is None:  # a long name has a line of its own
            lines.append(name)
            line = " " * indent
        for score, value in scores.items():
            if isinstance(value, dict | list):
                continue
            shown = f"{score} {_shown(value)}"
            if len(line) > indent and len(line) + len(shown) > TABLE_COLUMNS:
                lines.append(line.rstrip())
                line = " " * indent
            line += f"{shown}   "
        lines.append(line.rstrip())
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
