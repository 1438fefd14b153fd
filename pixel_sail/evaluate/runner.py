"""Opens benchmarks by name, and scores a model on them over any number of processes.

An interrupted run is continued where it stopped; see `pixel_sail.evaluate.predictions.PredictionFiles`.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import append_json_line, write_json
from pixel_sail.errors import UserError
from pixel_sail.evaluate import gcg, jsonl, perbench, reason_seg, referring, region
from pixel_sail.evaluate.benchmark import Benchmark, BenchmarkKind, Line, Options, by_image, calls, identity, is_empty
from pixel_sail.evaluate.pixfoundation import benchmark as pixfoundation
from pixel_sail.evaluate.predictions import PredictionFiles, in_case_order, read_lines
from pixel_sail.interrupts import Stopped, finish_first
from pixel_sail.model.generation import NotFinite
from pixel_sail.ranks import raise_together, together
from pixel_sail.types import BadSample

METRICS = "metrics.json"  # the file of scores in a folder of results
BENCHMARKS: tuple[BenchmarkKind, ...] = (
    referring.BENCHMARK,
    perbench.BENCHMARK,
    region.BENCHMARK,
    gcg.BENCHMARK,
    reason_seg.BENCHMARK,
    pixfoundation.BENCHMARK,
    jsonl.BENCHMARK,
)


def open_benchmark(
    name: str, data_root: Path, max_images: int | None = None, options: Options | None = None
) -> Benchmark:
    """The benchmark of a name (see `BENCHMARKS`), of its first `max_images` images. Raises DatasetError."""
    kind = next((kind for kind in BENCHMARKS if name.partition(":")[0] in kind.prefixes), None)
    if kind is None:
        raise DatasetError(f"unknown benchmark {name!r}; known are {', '.join(kind.form for kind in BENCHMARKS)}")
    benchmark = kind.open(data_root, name, options or Options())
    if len({identity(case, benchmark) for case in benchmark.cases}) != len(benchmark.cases):
        raise DatasetError(f"{data_root}: a case of {name} ({', '.join(benchmark.id_fields)}) occurs twice")
    if not benchmark.cases:
        first = f"; first: {benchmark.problems[0]}" if benchmark.problems else ""
        raise DatasetError(f"{name} has no case under {data_root} that can be scored{first}")
    images = by_image(benchmark.cases)[:max_images]
    return replace(benchmark, cases=tuple(case for cases in images for case in cases))


def tasks_of(name: str) -> tuple[str, ...]:
    """The benchmarks that a name stands for: "perbench" for its three tasks, any other name for itself."""
    return next((kind.tasks for kind in BENCHMARKS if kind.tasks and name in kind.prefixes), (name,))


def benchmark_help() -> str:
    """How the names of each kind are written, and what it scores; two lines a kind."""
    return "\n".join(f"  {kind.form}\n      {kind.help}" for kind in BENCHMARKS)


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
    return together(lambda: _score(benchmark, files.finish()) if is_first else None)


def _predict(predictor: Any, benchmark: Benchmark, files: PredictionFiles, todo: list[list[Any]]) -> list[int]:
    """Predicts this process's share of `todo`. Returns the signals that ended it, of all processes.

    Whoever fails or is told to stop leaves the file `stop`, at which the others look between two calls: nobody waits
    for what will not come.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    problem: Exception | None = None
    with finish_first("these images") as pending:
        try:
            for cases in tqdm(todo[rank::world], desc=benchmark.name, unit="call", disable=rank != 0):
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


def _score(benchmark: Benchmark, lines: list[Line]) -> dict[str, Any]:
    """The scores, and `empty`, the number of answers, if none of them says or shows anything."""
    scores = benchmark.score(lines)
    return scores | ({"empty": len(lines)} if all(map(is_empty, lines)) else {})


def score_file(
    predictions: Path, name: str, data_root: Path, max_images: int | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Scores of a predictions file of any model.

    Raises DatasetError for missing, repeated or unknown cases, BadSample for a mask that does not fit its image.
    """
    benchmark = open_benchmark(name, data_root, max_images, options)
    return _score(benchmark, in_case_order(benchmark, read_lines(predictions, benchmark), str(predictions)))


def definitions(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Benchmark -> score -> its definition, and whose definition it is in brackets; of the scores in `results`."""
    defined = {}
    for name, scores in results.items():
        kind = next((kind for kind in BENCHMARKS if name.partition(":")[0] in kind.prefixes), None)
        applying = [definition for definition in kind.definitions if definition.of(name)] if kind else []
        texts = {score: f"{d.text} [{d.source}]" for d in applying for score in d.scores if score in scores}
        if texts:
            defined[name] = texts
    return defined


def definitions_text(results: dict[str, dict[str, Any]]) -> str:
    """The definitions of the scores in a table, a line each; a definition of several benchmarks once."""
    uses: dict[str, list[str]] = {}
    for name, scores in definitions(results).items():
        for text in dict.fromkeys(scores.values()):
            shared = ", ".join(score for score in scores if scores[score] == text)
            uses.setdefault(text, []).append(f"{name} {shared}")
    return "\n".join(f"  {'; '.join(names)}: {text}" for text, names in uses.items())


def write_metrics(
    out: Path,
    checkpoint: Path | None,
    results: dict[str, dict[str, Any]],
    defined: dict[str, dict[str, str]] | None = None,
    made_with: dict[str, Any] | None = None,
) -> Path:
    """`metrics.json`: {"checkpoint": path or null, "benchmarks": {name: scores}, "definitions": {name: {score: text}}}.

    `checkpoint`: None for a scored file. `defined`: the definitions, if the names in `results` are no benchmarks.
    `made_with`: what the scores depend on besides, as plain JSON values.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / METRICS
    values = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "benchmarks": results,
        "definitions": definitions(results) if defined is None else defined,
    } | ({} if made_with is None else {"made_with": made_with})
    write_json(path, values, indent=2)
    return path


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a benchmark, and a column for each number that any of them has; percentages with one decimal."""
    numbers = [[name for name, value in scores.items() if not isinstance(value, dict)] for scores in results.values()]
    columns = list(dict.fromkeys(name for names in numbers for name in names))
    rows = [["benchmark", *columns]]
    rows += [[name, *(_shown(scores.get(column, "")) for column in columns)] for name, scores in results.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else str(value)
