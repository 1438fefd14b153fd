"""Reading files that somebody else wrote: the only door to their bytes, text, JSON, CSV and YAML.

Nothing here trusts a file: what is not a regular file is refused (a pipe or /dev/zero would be read for ever), and so
is what is larger than it can rightly be. Each function raises `error`, the class that the caller's room uses for it.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import stat
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pixel_sail.errors import FileError, UserError

_MARKS = (  # of a byte order mark; the longer ones first, because that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


MAX_BYTES = 32 * 2**30  # of an annotation file; the largest published ones have a few GB
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(
    path: Path, max_bytes: int = MAX_BYTES, error: type[UserError] = FileError, what: str = "file"
) -> int:
    """The size of a regular file in bytes. Raises `error` if it is missing, of another kind, or too large.

    `what`: what is missing, in the message.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"no {what} {path}") from None
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        raise error(f"cannot read {path}: {getattr(problem, 'strerror', None) or problem}") from None
    if kind := next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None):
        raise error(f"{path} is {kind}; a file is expected there")
    if status.st_size > max_bytes:
        raise error(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read")
    return status.st_size


def read_bytes(path: Path, max_bytes: int = MAX_BYTES, error: type[UserError] = FileError) -> bytes:
    """The contents of a regular file. Raises `error` as `check_regular` does, and where reading fails."""
    check_regular(path, max_bytes, error)
    try:
        return path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None


def read_chunks(path: Path, chunk_bytes: int, error: type[UserError] = FileError) -> Iterator[bytes]:
    """The contents of a regular file, `chunk_bytes` at a time. Raises `error` as `read_bytes` does."""
    check_regular(path, error=error)
    try:
        with path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                yield chunk
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None


def read_text(path: Path, fallback: str | None = None, error: type[UserError] = FileError) -> str:
    """The text of a file in UTF-8, or in UTF-8, UTF-16 or UTF-32 with a byte order mark, which is removed.

    `fallback`: the encoding of what is none of these, for formats that are known to have it. Raises `error` as
    `read_bytes` does, and otherwise for another encoding, with the place of the first byte that does not fit.
    """
    data = read_bytes(path, error=error)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        if fallback is not None:
            return data.decode(fallback, errors="replace")
        line = data.count(b"\n", 0, problem.start) + 1
        near = data[max(0, problem.start - 20) : problem.start + 20].decode("cp1252", errors="replace")
        raise error(
            f"{path}, line {line}: the text is not UTF-8 (near {near!r} as cp1252); if that reads well, convert it: "
            f"iconv -f cp1252 -t utf-8 {path.name} > new"
        ) from None


def read_json(path: Path, fallback: str | None = None, error: type[UserError] = FileError) -> Any:
    """Parsed contents. Raises `error` as `read_text` does, and for what is not valid JSON or nested too deep."""
    try:
        return parse_json(read_text(path, fallback, error))
    except UserError:
        raise
    except ValueError as problem:
        raise error(f"{path} is not valid JSON: {problem}") from None


def parse_json(text: str | bytes) -> Any:
    """The values of a text. Raises ValueError if it is not valid JSON, nested too deep, or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_members)  # a fifth slower than without the hook
    except RecursionError:
        raise ValueError("its values are nested too deep") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        for key, value in pairs:
            if members[key] != value and value == value:
                raise ValueError(
                    f"an object has the key {key[:80]!r} twice, with different values: nothing says which holds"
                )
    return members


def parse_npy(data: bytes) -> np.ndarray:
    """The array of an .npy file in memory: plain numbers, as many as there are bytes for. Raises ValueError."""
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of .npy is not read")
        shape, is_fortran, dtype = read_header(file)
    except (SyntaxError, tokenize.TokenError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"the header of the .npy is damaged: {error!s:.200}") from None
    if dtype.kind not in "biuf":
        raise ValueError(f"the .npy holds {dtype}, no plain numbers")
    expected, present = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if min(shape, default=0) < 0 or expected != present:
        raise ValueError(f"the .npy claims {shape} values of {dtype}, {expected:,} bytes, and has {present:,}")
    values = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    return values.copy(order="K")


def read_csv(path: Path, error: type[UserError] = FileError) -> list[list[str]]:
    """The rows; spaces after a comma are skipped. Raises `error` as `read_text` does, and for a field of 128 KiB."""
    try:
        return list(csv.reader(io.StringIO(read_text(path, error=error), newline=""), skipinitialspace=True))
    except csv.Error as problem:
        raise error(f"{path} is not valid CSV: {problem}") from None


def _unmarked(data: bytes) -> str:
    """UTF-8; UTF-16 if every other of the first bytes is 0, as in ASCII text without a mark."""
    first = data[:64]
    if len(first) >= 2 and len(first) % 2 == 0:
        if not any(first[1::2]) and all(first[::2]):
            return "utf-16-le"
        if not any(first[::2]) and all(first[1::2]):
            return "utf-16-be"
    return "utf-8"
