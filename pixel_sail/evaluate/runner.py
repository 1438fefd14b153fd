"""Scores a model on benchmarks, over any number of processes, and goes on where an interrupted run stopped.

In `<out>/predictions/`, for a benchmark B:
    B.manifest.json   what the predictions were made with; those made with anything else are not continued
    B.rank<r>.jsonl   what process r has predicted in this run, call by call (a few images)
    B.partial.jsonl   what earlier, interrupted runs had finished
    B.jsonl           all cases in order, once all are there; the scores are computed from it and nothing else
    B.left_out.txt    annotations that are no case because they, or their images, are unusable; a line each
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate import gcg, perbench, reason_seg, region
from pixel_sail.evaluate.benchmark import Benchmark, Line, by_image, calls, identity
from pixel_sail.evaluate.pixfoundation import benchmark as pixfoundation
from pixel_sail.evaluate.pixfoundation.judge import Judge
from pixel_sail.evaluate.predictions import in_case_order, read_lines, write_lines
from pixel_sail.evaluate.referring import ReferringBenchmark
from pixel_sail.metrics import MIN_PIXELS

_SHOWN_PROBLEMS = 5


def open_benchmark(
    name: str,
    data_root: Path,
    max_images: int | None = None,
    min_pixels: int = MIN_PIXELS,
    judge: Judge | None = None,
) -> Benchmark:
    """The benchmark of a name (see tools/test.py), of its first `max_images` images. Raises DatasetError.

    `judge`: for the free answers of pixmmvp and pixcvbench.
    """
    kind, _, part = name.partition(":")
    if kind == perbench.FOLDER:
        benchmark: Benchmark = perbench.PerbenchTask.read(data_root, part)
    elif kind == region.KIND:
        benchmark = region.RegionCaptions.read(data_root, part)
    elif kind == gcg.KIND:
        benchmark = gcg.GroundedCaptions.read(data_root, part)
    elif kind == reason_seg.KIND:
        benchmark = reason_seg.ReasonSegBenchmark.read(data_root, part)
    elif name in pixfoundation.KINDS:
        benchmark = pixfoundation.PixBenchmark.read(data_root, name, judge)
    else:
        benchmark = ReferringBenchmark.read(data_root, name, min_pixels)
    if len({identity(case, benchmark) for case in benchmark.cases}) != len(benchmark.cases):
        raise DatasetError(f"{data_root}: a case of {name} ({', '.join(benchmark.id_fields)}) occurs twice")
    images = by_image(benchmark.cases)[:max_images]
    return replace(benchmark, cases=tuple(case for cases in images for case in cases))


def fingerprint(checkpoint: Path, **settings: Any) -> dict[str, Any]:
    """Tells predictions of one checkpoint and settings from those of another, by sizes and times of its files."""
    files = sorted(path for path in checkpoint.glob("*") if path.is_file())
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"checkpoint": str(checkpoint), "files": stats, "settings": settings}


def run_benchmark(predictor: Any, benchmark: Benchmark, out: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """Predicts what is not yet there, shared out over the processes; the scores on rank 0, None on the others.

    `made_with` (plain JSON values, see `fingerprint`) decides whether earlier predictions in `out` are continued. Where
    torch.distributed is initialized, every process must call this. Raises BadSample for an unreadable image; the
    predictions made so far stay.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    files = PredictionFiles(out / "predictions", benchmark)
    if rank == 0:
        files.prepare(made_with)
    _wait_for_all(world)
    done = {identity(line, benchmark) for line in read_lines(files.partial, benchmark)}
    todo = [cases for cases in calls(benchmark) if identity(cases[0], benchmark) not in done]
    with files.part(rank).open("w", encoding="utf-8") as file:
        for cases in tqdm(todo[rank::world], desc=f"{benchmark.name}", unit="call", disable=rank != 0):
            for line in benchmark.predict(predictor, cases):
                file.write(json.dumps(line) + "\n")
                file.flush()
    _wait_for_all(world)
    return benchmark.score(files.finish()) if rank == 0 else None


def score_file(
    predictions: Path,
    name: str,
    data_root: Path,
    max_images: int | None = None,
    min_pixels: int = MIN_PIXELS,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Scores of a prediction file of any model.

    Raises DatasetError for missing, repeated or unknown cases, BadSample for a mask that does not fit its image.
    """
    benchmark = open_benchmark(name, data_root, max_images, min_pixels, judge)
    return benchmark.score(in_case_order(benchmark, read_lines(predictions, benchmark), str(predictions)))


class PredictionFiles:
    """The files of one benchmark; see the module's docstring. Only rank 0 calls the methods that change them."""

    def __init__(self, folder: Path, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._folder = folder
        self.final = folder / f"{benchmark.name}.jsonl"
        self.partial = folder / f"{benchmark.name}.partial.jsonl"
        self._manifest = folder / f"{benchmark.name}.manifest.json"

    def part(self, rank: int) -> Path:
        return self._folder / f"{self._benchmark.name}.rank{rank}.jsonl"

    def prepare(self, made_with: dict[str, Any]) -> None:
        """Gathers the finished calls of earlier runs in the partial file, or drops all that was made otherwise."""
        self._folder.mkdir(parents=True, exist_ok=True)
        manifest = {"made_with": made_with, "cases": _digest(self._benchmark)}
        found = [path for path in (self.final, self.partial, *self._parts()) if path.exists()]
        if self._read_manifest() == json.loads(json.dumps(manifest)):
            parts = [read_lines(path, self._benchmark, allow_torn_end=True) for path in found]
            lines = {identity(line, self._benchmark): line for part in parts for line in part}
        else:
            lines = {}
            if found:
                print(
                    f"{self._folder}: the predictions of {self._benchmark.name} there were made with another "
                    "checkpoint, settings or data; they are replaced"
                )
        finished = [
            [lines[identity(case, self._benchmark)] for case in cases]
            for cases in calls(self._benchmark)
            if all(identity(case, self._benchmark) in lines for case in cases)
        ]
        if not lines:  # in this order, a kill in between cannot mark foreign predictions as ours
            for path in found:
                path.unlink()
        write_lines(self.partial, (line for call in finished for line in call))
        self._manifest.write_text(json.dumps(manifest, indent=1) + "\n")
        for path in self._parts():
            path.unlink()

    def finish(self) -> list[Line]:
        """Joins partial and parts into the final file, in case order, and returns its lines."""
        lines = [line for path in (self.partial, *self._parts()) for line in read_lines(path, self._benchmark)]
        ordered = in_case_order(self._benchmark, lines, str(self._folder))
        write_lines(self.final, ordered)
        for path in (self.partial, *self._parts()):
            path.unlink()
        return ordered

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._benchmark.name}.rank*.jsonl"))

    def _read_manifest(self) -> Any:
        try:
            return json.loads(self._manifest.read_text())
        except (FileNotFoundError, ValueError):  # none, or torn: then nothing is known about what lies here
            return None


def list_problems(benchmark: Benchmark, out: Path) -> str | None:
    """Writes all that is left out of a benchmark to its file, and gives a message with the first few.

    Where nothing is left out: None, and no file, not even that of an earlier run.
    """
    path = out / "predictions" / f"{benchmark.name}.left_out.txt"
    if not benchmark.problems:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{problem}\n" for problem in benchmark.problems), encoding="utf-8")
    shown = [f"  {problem}" for problem in benchmark.problems[:_SHOWN_PROBLEMS]]
    return "\n".join([f"{len(benchmark.problems)} left out of {benchmark.name}, listed in {path}; the first:", *shown])


def write_metrics(out: Path, checkpoint: Path | None, results: dict[str, dict[str, Any]]) -> Path:
    """`metrics.json`: {"checkpoint": path or null (a file was scored), "benchmarks": {name: scores}}."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "metrics.json"
    values = {"checkpoint": None if checkpoint is None else str(checkpoint), "benchmarks": results}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
    return path


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a benchmark, one column a number that any of them has; percent with one decimal."""
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


def _digest(benchmark: Benchmark) -> str:
    return hashlib.sha256("\n".join(map(repr, benchmark.cases)).encode()).hexdigest()


def _wait_for_all(world: int) -> None:
    if world > 1:
        dist.barrier()
