"""Opens benchmarks by name, and scores a model on them over any number of processes.

An interrupted run is continued where it stopped; see `pixel_sail.evaluate.predictions.PredictionFiles`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.durable import append_json_line, write_json
from pixel_sail.evaluate import gcg, jsonl, perbench, reason_seg, referring, region
from pixel_sail.evaluate.benchmark import Benchmark, BenchmarkKind, Options, by_image, calls, identity
from pixel_sail.evaluate.pixfoundation import benchmark as pixfoundation
from pixel_sail.evaluate.predictions import PredictionFiles, in_case_order, read_lines
from pixel_sail.ranks import together

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
    with the same. If torch.distributed is initialized, every process must call this. Raises BadSample for an unreadable
    image (RankFailed on the other ranks); the predictions made so far stay.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    files = PredictionFiles(out, benchmark)

    def predict_share() -> None:
        done = {identity(line, benchmark) for line in read_lines(files.partial, benchmark)}
        todo = [cases for cases in calls(benchmark) if identity(cases[0], benchmark) not in done]
        for cases in tqdm(todo[rank::world], desc=benchmark.name, unit="call", disable=rank != 0):
            for line in benchmark.predict(predictor, cases):
                append_json_line(files.part(rank), line)

    together(lambda: files.prepare(made_with) if rank == 0 else None)
    together(predict_share)
    return benchmark.score(files.finish()) if rank == 0 else None


def score_file(
    predictions: Path, name: str, data_root: Path, max_images: int | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Scores of a predictions file of any model.

    Raises DatasetError for missing, repeated or unknown cases, BadSample for a mask that does not fit its image.
    """
    benchmark = open_benchmark(name, data_root, max_images, options)
    return benchmark.score(in_case_order(benchmark, read_lines(predictions, benchmark), str(predictions)))


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
) -> Path:
    """`metrics.json`: {"checkpoint": path or null, "benchmarks": {name: scores}, "definitions": {name: {score: text}}}.

    `checkpoint`: None for a scored file. `defined`: the definitions, if the names in `results` are no benchmarks.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "metrics.json"
    values = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "benchmarks": results,
        "definitions": definitions(results) if defined is None else defined,
    }
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
