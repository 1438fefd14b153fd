"""Prediction files: one JSON line a case, in the form that `tools/test.py --predictions` takes from any model."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json, read_text
from pixel_sail.durable import differences, few, fingerprint, whole_lines, write_json, write_json_lines, write_text
from pixel_sail.evaluate.benchmark import Benchmark, Line, calls, identity
from pixel_sail.evaluate.file_names import earlier_file_name, file_name, suffix_of
from pixel_sail.files import parse_json
from pixel_sail.types import BadSample

_SHOWN_IDS = 5  # in an error
_SHOWN_PROBLEMS = 5


def read_lines(path: Path, benchmark: Benchmark) -> list[Line]:
    """The lines of a predictions file, each with the fields that scoring reads. Blank lines are skipped.

    Raises DatasetError for a missing file, and for a line that is no prediction.
    """
    if not path.exists():
        raise DatasetError(f"no predictions file {path}")
    rows = read_text(path).split("\n")
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
    """The files of a benchmark in `<out>/predictions/`; B is its `file_name`. Only rank 0 calls what changes them.

    B.manifest.json   what the predictions were made with; a run with anything else does not continue them
    B.rank<r>.jsonl   the predictions of process r in this run, call by call (a few images)
    B.partial.jsonl   the finished calls of earlier, interrupted runs
    B.jsonl           all cases in order, once they are complete; scores are computed from this file alone
    B.replaced.jsonl  the complete predictions that stood there before, made with anything else
    B.left_out.txt    annotations that are no case because they, or their images, are unusable; a line each
    B.stop            another process must stop: see `run_benchmark`
    """

    def __init__(self, out: Path, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._folder = out / "predictions"
        self._stem = file_name(benchmark.name)
        self.final = self._path("jsonl")
        self.partial = self._path("partial.jsonl")
        self.stop = self._path("stop")
        self._manifest = self._path("manifest.json")
        self._left_out = self._path("left_out.txt")

    def part(self, rank: int) -> Path:
        return self._path(f"rank{rank}.jsonl")

    def prepare(self, made_with: dict[str, Any]) -> None:
        """Collects finished calls of earlier runs in the partial file; sets predictions made with anything else aside.

        What a damaged line answered is predicted again.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.stop.unlink(missing_ok=True)
        rename_earlier(self._folder.parent, self._benchmark.name)
        manifest = self._manifest_of(made_with)
        earlier = [path for path in (self.final, self.partial, *self._parts()) if path.exists()]
        changes = self._changes(manifest) if earlier else []
        lines = {} if changes else self._usable(earlier)
        if changes:
            self._set_aside(changes)
        finished = [
            [lines[identity(case, self._benchmark)] for case in cases]
            for cases in calls(self._benchmark)
            if all(identity(case, self._benchmark) in lines for case in cases)
        ]
        if not lines:  # before the manifest is written: a kill in between must not leave foreign predictions beside it
            for path in earlier:
                path.unlink(missing_ok=True)
        write_json_lines(self.partial, (line for call in finished for line in call))
        write_json(self._manifest, manifest)
        for path in self._parts():
            path.unlink()

    def predicted(self) -> int:
        """The number of lines that are written, of all processes."""
        paths = [path for path in (self.partial, *self._parts()) if path.exists()]
        return sum(len(whole_lines(path)) for path in paths)

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
        return self._folder / f"{self._stem}.{suffix}"

    def _parts(self) -> list[Path]:
        names = (path.name for path in self._folder.iterdir())
        return sorted(self._folder / name for name in names if (suffix_of(name, self._stem) or "").startswith("rank"))

    def _manifest_of(self, made_with: dict[str, Any]) -> dict[str, Any]:
        cases = self._benchmark.cases
        return {
            "made_with": made_with,
            "cases": fingerprint(repr(case).encode() for case in cases),
            "images": {str(path): _size_bytes(path) for path in dict.fromkeys(case.image for case in cases)},
        }

    def _changes(self, manifest: dict[str, Any]) -> list[str]:
        """In words, how the manifest of the earlier predictions differs from `manifest`; empty if it does not."""
        try:
            earlier = read_json(self._manifest)
            changes = differences(earlier["made_with"], manifest["made_with"])
            same_cases = earlier["cases"] == manifest["cases"]
            sizes = earlier.get("images", {})  # not there in earlier versions
            other = [
                path
                for path, size in manifest["images"].items()
                if None not in (size, sizes.get(path)) and size != sizes[path]
            ]
        except (DatasetError, TypeError, KeyError, AttributeError):
            return [f"{self._manifest.name} does not say what they were made with"]
        if not same_cases:
            changes.append("the cases differ (other data, or another --max-images)")
        return changes + ([f"{len(other)} image files differ, the first: {other[0]}"] if other else [])

    def _set_aside(self, changes: list[str]) -> None:
        """Says what differs; complete predictions stay under another name."""
        kept = ""
        if self.final.exists():
            self.final.replace(self._path("replaced.jsonl"))
            kept = f" (kept as {self._path('replaced.jsonl').name})"
        print(f"{self._folder}: the earlier predictions of {self._benchmark.name} are replaced{kept}: {few(changes)}")

    def _usable(self, paths: Sequence[Path]) -> dict[tuple[Hashable, ...], Line]:
        """The lines of our own files by case. A line that no longer holds what was written is left out, with a note."""
        cases = {identity(case, self._benchmark): case for case in self._benchmark.cases}
        lines: dict[tuple[Hashable, ...], Line] = {}
        for path in paths:
            damaged: list[str] = []
            for number, row in enumerate(whole_lines(path), start=1):
                where = f"{path}, line {number}"
                try:
                    line = _parse(row, self._benchmark, where)
                    key = identity(line, self._benchmark)
                    if key in cases:
                        self._benchmark.check(line, cases[key], where)
                        lines[key] = line
                except (DatasetError, BadSample) as error:
                    damaged.append(str(error))
            if damaged:
                print(f"{len(damaged)} damaged lines are predicted again; the first: {damaged[0]}")
        return lines


def rename_earlier(out: Path, benchmark: str) -> None:
    """Gives the files in `<out>/predictions/` that have a colon in their names the names of today."""
    folder, stem, earlier = out / "predictions", file_name(benchmark), earlier_file_name(benchmark)
    for path in sorted(folder.iterdir()) if folder.is_dir() and stem != earlier else ():
        suffix = suffix_of(path.name, earlier)
        if suffix is not None and not (folder / f"{stem}.{suffix}").exists():
            path.rename(folder / f"{stem}.{suffix}")


def _parse(row: str, benchmark: Benchmark, where: str) -> Line:
    try:
        line = parse_json(row)
        if not isinstance(line, dict):
            raise TypeError("no object")
        _ = hash(identity(line, benchmark)), [line[name] for name in benchmark.answer_fields]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{where}: {row[:60]!r} is no prediction ({error}); a line is a JSON object with "
            f"{', '.join((*benchmark.id_fields, *benchmark.answer_fields))}"
        ) from None
    return line


def _refuse_any(keys: Sequence[tuple[Hashable, ...]], message: str, fields: str) -> None:
    if keys:
        shown = ", ".join(f"({', '.join(map(reprlib.repr, key))})" for key in keys[:_SHOWN_IDS])
        raise DatasetError(f"{message}; ({fields}): {shown}" + (", ..." if len(keys) > _SHOWN_IDS else ""))


def _size_bytes(path: Path) -> int | None:
    """None for a file that is not there, perhaps only now."""
    try:
        return path.stat().st_size
    except OSError:
        return None
