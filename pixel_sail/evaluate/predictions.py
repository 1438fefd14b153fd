"""Prediction files: one JSON line a case, in the form that `tools/test.py --predictions` takes from any model."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from pixel_sail.data.errors import DatasetError
from pixel_sail.evaluate.benchmark import Benchmark, Line, identity

_NAMED = 5  # ids listed in an error


def read_lines(path: Path, benchmark: Benchmark, allow_torn_end: bool = False) -> list[Line]:
    """The lines of a file with what scoring needs; DatasetError names a missing file or the bad line.

    `allow_torn_end`: a last line without its newline is dropped, as a process that was killed while writing leaves it.
    """
    if not path.is_file():
        raise DatasetError(f"no predictions file {path}")
    rows = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if allow_torn_end:
        rows = rows[:-1]
    lines = []
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
            _ = hash(identity(line, benchmark)), [line[name] for name in benchmark.answer_fields]
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(
                f"{path}, line {number}: {row[:60]!r} is no prediction ({error}); a line is a JSON object with "
                f"{', '.join((*benchmark.id_fields, *benchmark.answer_fields))}"
            ) from None
        lines.append(line)
    return lines


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Whole or not at all: to a temporary file, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def in_case_order(benchmark: Benchmark, lines: Sequence[Line], where: str) -> list[Line]:
    """One checked line for each case, in the benchmark's order.

    Raises DatasetError for unknown ids, cases given twice, missing cases, and BadSample for an RLE that does not fit.
    """
    cases = {identity(case, benchmark): case for case in benchmark.cases}
    fields = ", ".join(benchmark.id_fields)
    given = {identity(line, benchmark): line for line in lines}
    unknown = [key for key in given if key not in cases]
    _none_of(unknown, f"{where}: {len(unknown)} lines are of no case of {benchmark.name}", fields)
    if len(given) != len(lines):
        seen: set[tuple[Hashable, ...]] = set()
        twice = [key for key in (identity(line, benchmark) for line in lines) if key in seen or seen.add(key)]
        _none_of(twice, f"{where}: {len(twice)} cases are given more than once", fields)
    missing = [key for key in cases if key not in given]
    _none_of(missing, f"{where}: {len(missing)} of the {len(cases)} cases of {benchmark.name} are missing", fields)
    for key, line in given.items():
        named = " ".join(f"{name} {part}" for name, part in zip(benchmark.id_fields, key, strict=True))
        benchmark.check(line, cases[key], f"{where}, {named}")
    return [given[key] for key in cases]


def _none_of(keys: Sequence[tuple[Hashable, ...]], message: str, fields: str) -> None:
    if keys:
        shown = ", ".join(f"({', '.join(map(repr, key))})" for key in keys[:_NAMED])
        raise DatasetError(f"{message}; ({fields}): {shown}" + (", ..." if len(keys) > _NAMED else ""))
