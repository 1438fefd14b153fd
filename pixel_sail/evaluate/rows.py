"""The rows of a table that comes with a benchmark: JSON lines, or parquet."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import check_regular, read_text
from pixel_sail.files import parse_json


def read_json_rows(path: Path) -> list[Any]:
    """The values of a file's lines; blank lines are skipped. Raises DatasetError, naming the line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {line[:60]!r} is not JSON ({error})") from None
    return rows


def read_parquet(path: Path, columns: Sequence[str], extra: str, instead: str) -> list[dict[str, Any]]:
    """The rows of some columns. It needs pyarrow, or pandas with an engine of its own.

    Raises DatasetError; `extra` of this package has what is needed, and `instead` is the file that does without it.
    """
    if importlib.util.find_spec("pyarrow") is not None:
        check_regular(path)
        parquet = importlib.import_module("pyarrow.parquet")
        try:
            return list(parquet.read_table(path, columns=list(columns)).to_pylist())
        except Exception as error:  # pyarrow has its own classes of errors, and not only for what is no parquet
            raise DatasetError(f"{path} cannot be read as parquet: {str(error)[:300]}") from None
    try:
        pandas = importlib.import_module("pandas")
        rows = pandas.read_parquet(path, columns=list(columns)).to_dict("records")
    except ImportError:  # no pandas, or none that reads parquet
        raise DatasetError(
            f"{path} needs pyarrow: pip install 'pixel_sail[{extra}]'; or put {instead} beside it"
        ) from None
    return [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()} for row in rows
    ]
