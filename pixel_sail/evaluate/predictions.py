"""Prediction files: one JSON line a case, in the form that `tools/test.py --predictions` takes from any model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle
from pixel_sail.data.sources.cases import Benchmark, Case
from pixel_sail.types import RLE

_NAMED = 5  # ids listed in an error


class Line(TypedDict):
    ref_id: int
    sent_id: int
    sentence: str
    text: str  # the model's answer
    segmentation: RLE | None  # size of the stored picture; None: no mask


def identity(item: Case | Line) -> tuple[int, int]:
    """(ref_id, sent_id): what joins a line to its case."""
    return (item.ref_id, item.sent_id) if isinstance(item, Case) else (item["ref_id"], item["sent_id"])


def read_lines(path: Path, allow_torn_end: bool = False) -> list[Line]:
    """The lines of a file; DatasetError names a missing file or the bad line.

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
            _ = hash(identity(line)), line["segmentation"]  # what scoring needs
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(
                f"{path}, line {number}: {row[:60]!r} is no prediction ({error}); a line is a JSON object with ref_id, "
                "sent_id and segmentation (RLE or null)"
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
    cases = {identity(case): case for case in benchmark.cases}
    given = {identity(line): line for line in lines}
    unknown = [key for key in given if key not in cases]
    _none_of(unknown, f"{where}: {len(unknown)} lines are of no case of {benchmark.name}")
    if len(given) != len(lines):
        seen: set[tuple[int, int]] = set()
        twice = [key for key in map(identity, lines) if key in seen or seen.add(key)]
        _none_of(twice, f"{where}: {len(twice)} cases are given more than once")
    missing = [key for key in cases if key not in given]
    _none_of(missing, f"{where}: {len(missing)} of the {len(cases)} cases of {benchmark.name} are missing")
    for key, line in given.items():
        if line["segmentation"] is not None:
            check_rle(line["segmentation"], cases[key].size_hw, f"{where}, ref_id {key[0]} sent_id {key[1]}")
    return [given[key] for key in cases]


def _none_of(keys: Sequence[tuple[int, int]], message: str) -> None:
    if keys:
        shown = ", ".join(f"({ref_id!r}, {sent_id!r})" for ref_id, sent_id in keys[:_NAMED])
        raise DatasetError(f"{message}; (ref_id, sent_id): {shown}" + (", ..." if len(keys) > _NAMED else ""))
