"""Prediction files: one JSON line a case, in the form that `tools/test.py --predictions` takes from any model."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_text
from pixel_sail.durable import differences, fingerprint, whole_lines, write_json, write_json_lines, write_text
from pixel_sail.evaluate.benchmark import Benchmark, Line, calls, identity

_SHOWN_IDS = 5  # in an error
_SHOWN_PROBLEMS = 5
_SHOWN_DIFFERENCES = 3


def read_lines(path: Path, benchmark: Benchmark, allow_torn_end: bool = False) -> list[Line]:
    """The lines of a predictions file, each with the fields that scoring reads. Blank lines are skipped.

    `allow_torn_end`: a last line without a newline, which a killed process leaves, is dropped. Raises DatasetError for
    a missing file, and for a line that is no prediction.
    """
    if not path.is_file():
        raise DatasetError(f"no predictions file {path}")
    rows = whole_lines(path) if allow_torn_end else read_text(path).split("\n")
    return [_parse(row, benchmark, f"{path}, line {number}") for number, row in enumerate(rows, start=1) if row.strip()]


def in_case_order(benchmark: Benchmark, lines: Sequence[Line], where: str) -> list[Line]:
    """One checked line for each case, in the order of the benchmark's cases.

    Raises DatasetError for unknown, repeated and missing cases, and BadSample for an answer that cannot be scored;
    their messages begin with `where`.
    """
    cases = {identity(case, benchmark): case for case in benchmark.cases}
    fields = ", ".join(benchmark.id_fields)
    by_id = {identity(line, benchmark): line for line in lines}
    unknown = [key for key in by_id if key not in cases]
    _refuse_any(unknown, f"{where}: {len(unknown)} lines are of no case of {benchmark.name}", fields)
    if len(by_id) != len(lines):
        seen: set[tuple[Hashable, ...]] = set()
        repeated = [key for key in (identity(line, benchmark) for line in lines) if key in seen or seen.add(key)]
        _refuse_any(repeated, f"{where}: {len(repeated)} cases are given more than once", fields)
    missing = [key for key in cases if key not in by_id]
    _refuse_any(missing, f"{where}: {len(missing)} of the {len(cases)} cases of {benchmark.name} are missing", fields)
    for key, line in by_id.items():
        ids = " ".join(f"{name} {value}" for name, value in zip(benchmark.id_fields, key, strict=True))
        benchmark.check(line, cases[key], f"{where}, {ids}")
    return [by_id[key] for key in cases]


class PredictionFiles:
    """The files of a benchmark B in `<out>/predictions/`. Only rank 0 calls the methods that change them.

    B.manifest.json   what the predictions were made with; a run with anything else does not continue them
    B.rank<r>.jsonl   the predictions of process r in this run, call by call (a few images)
    B.partial.jsonl   the finished calls of earlier, interrupted runs
    B.jsonl           all cases in order, once they are complete; scores are computed from this file alone
    B.left_out.txt    annotations that are no case because they, or their images, are unusable; a line each
    """

    def __init__(self, out: Path, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._folder = out / "predictions"
        self.final = self._path("jsonl")
        self.partial = self._path("partial.jsonl")
        self._manifest = self._path("manifest.json")
        self._left_out = self._path("left_out.txt")

    def part(self, rank: int) -> Path:
        return self._path(f"rank{rank}.jsonl")

    def prepare(self, made_with: dict[str, Any]) -> None:
        """Collects finished calls of earlier runs in the partial file; deletes predictions made with anything else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        manifest = {"made_with": made_with, "cases": fingerprint(repr(case).encode() for case in self._benchmark.cases)}
        earlier = [path for path in (self.final, self.partial, *self._parts()) if path.exists()]
        changes = self._changes(manifest) if earlier else []
        if changes:
            shown = "; ".join([*changes[:_SHOWN_DIFFERENCES], *(["..."] if len(changes) > _SHOWN_DIFFERENCES else [])])
            print(f"{self._folder}: the earlier predictions of {self._benchmark.name} are replaced: {shown}")
        parts = [read_lines(path, self._benchmark, allow_torn_end=True) for path in earlier] if not changes else []
        lines = {identity(line, self._benchmark): line for part in parts for line in part}
        finished = [
            [lines[identity(case, self._benchmark)] for case in cases]
            for cases in calls(self._benchmark)
            if all(identity(case, self._benchmark) in lines for case in cases)
        ]
        if not lines:  # before the manifest is written: a kill in between must not leave foreign predictions beside it
            for path in earlier:
                path.unlink()
        write_json_lines(self.partial, (line for call in finished for line in call))
        write_json(self._manifest, manifest)
        for path in self._parts():
            path.unlink()

    def finish(self) -> list[Line]:
        """Joins the partial file and the parts into the final file, in case order, and returns its lines."""
        lines = [line for path in (self.partial, *self._parts()) for line in read_lines(path, self._benchmark)]
        ordered = in_case_order(self._benchmark, lines, str(self._folder))
        write_json_lines(self.final, ordered)
        for path in (self.partial, *self._parts()):
            path.unlink()
        return ordered

    def list_problems(self) -> str | None:
        """Writes every problem of the benchmark to its file, and returns a message with the first few.

        Without problems: None, and the file of an earlier run is deleted.
        """
        problems = self._benchmark.problems
        if not problems:
            self._left_out.unlink(missing_ok=True)
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._left_out, "".join(f"{problem}\n" for problem in problems))
        head = f"{len(problems)} left out of {self._benchmark.name}, listed in {self._left_out}; the first:"
        return "\n".join([head, *(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])])

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._benchmark.name}.{suffix}"

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._benchmark.name}.rank*.jsonl"))

    def _changes(self, manifest: dict[str, Any]) -> list[str]:
        """In words, how the manifest of the earlier predictions differs from `manifest`; empty if it does not."""
        try:
            earlier = json.loads(self._manifest.read_text(encoding="utf-8"))
            changes = differences(earlier["made_with"], manifest["made_with"])
            same_cases = earlier["cases"] == manifest["cases"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return [f"{self._manifest.name} does not say what they were made with"]
        return changes + ([] if same_cases else ["the cases differ (other data, or another --max-images)"])


def _parse(row: str, benchmark: Benchmark, where: str) -> Line:
    try:
        line = json.loads(row)
        _ = hash(identity(line, benchmark)), [line[name] for name in benchmark.answer_fields]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{where}: {row[:60]!r} is no prediction ({error}); a line is a JSON object with "
            f"{', '.join((*benchmark.id_fields, *benchmark.answer_fields))}"
        ) from None
    return line


def _refuse_any(keys: Sequence[tuple[Hashable, ...]], message: str, fields: str) -> None:
    if keys:
        shown = ", ".join(f"({', '.join(map(repr, key))})" for key in keys[:_SHOWN_IDS])
        raise DatasetError(f"{message}; ({fields}): {shown}" + (", ..." if len(keys) > _SHOWN_IDS else ""))
