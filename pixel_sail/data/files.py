"""Reading annotation files, JSON and CSV, in the encodings that people have: the only door to their text."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError

_MARKS = (  # of a byte order mark; the longer ones first, because that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, fallback: str | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-8, UTF-16 or UTF-32 with a byte order mark, which is removed.

    `fallback`: the encoding of what is none of these, for formats that are known to have it. Raises DatasetError for a
    missing file, and otherwise for another encoding, with the place of the first byte that does not fit.
    """
    if not path.is_file():
        raise DatasetError(f"no file {path}")
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback, errors="replace")
        line = data.count(b"\n", 0, error.start) + 1
        near = data[max(0, error.start - 20) : error.start + 20].decode("cp1252", errors="replace")
        raise DatasetError(
            f"{path}, line {line}: the text is not UTF-8 (near {near!r} as cp1252); if that reads well, convert it: "
            f"iconv -f cp1252 -t utf-8 {path.name} > new"
        ) from None


def read_json(path: Path, fallback: str | None = None) -> Any:
    """Parsed contents. Raises DatasetError as `read_text` does, and for one that is not valid JSON."""
    try:
        return json.loads(read_text(path, fallback))
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is not valid JSON: {error}") from None


def read_csv(path: Path) -> list[list[str]]:
    """The rows; spaces after a comma are skipped. Raises DatasetError as `read_text` does."""
    return list(csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True))


def _unmarked(data: bytes) -> str:
    """UTF-8; UTF-16 if every other of the first bytes is 0, as in ASCII text without a mark."""
    first = data[:64]
    if len(first) >= 2 and len(first) % 2 == 0:
        if not any(first[1::2]) and all(first[::2]):
            return "utf-16-le"
        if not any(first[::2]) and all(first[1::2]):
            return "utf-16-be"
    return "utf-8"
