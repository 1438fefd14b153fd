"""Reads pickles of plain data only. A pickle can name any function to be called; these must not name any.

A small file can also claim sizes that it does not have, or number its values up to billions: it is read under a limit
of memory. And it can use one value many times ("a tuple of two tuples of two tuples ..."): readers check the type of
each value that they use, and never walk through what they do not know.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_bytes
from pixel_sail.data.limits import PICKLE_MEMORY_PER_BYTE, PICKLE_SPARE_MEMORY

# Raised by the C unpickler on a damaged stream, or when an opcode calls something that is not a function.
_STREAM_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)


class _NamesCode(Exception):
    """The stream asks to import something."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, text and numbers have their own opcodes; everything else comes through these two methods."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NamesCode(f"{module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NamesCode(f"persistent object {pid!r}" if isinstance(pid, str | int) else "a persistent object")


def load_plain_pickle(path: Path) -> Any:
    """Lists, tuples, dicts, sets, text, numbers, None. Python 2 text is read as UTF-8, or else as Latin-1.

    Raises DatasetError for a file that is missing, damaged, or names code, and for one that needs far more memory than
    its size explains. No code from the file is imported or run.
    """
    contents = read_bytes(path)
    try:
        return _load(contents, path, encoding="utf-8")
    except UnicodeDecodeError:
        return _load(contents, path, encoding="latin1")


def _load(contents: bytes, path: Path, encoding: str) -> Any:
    limit = PICKLE_SPARE_MEMORY + PICKLE_MEMORY_PER_BYTE * len(contents)
    try:
        with _memory_limited(limit):
            return _PlainUnpickler(io.BytesIO(contents), encoding=encoding).load()
    except _NamesCode as error:
        raise DatasetError(
            f"refused {path}: the pickle asks for {error}, which could run code; an annotation file holds only "
            "lists, dicts, text and numbers. Nothing from this file was run; download the official one"
        ) from None
    except UnicodeDecodeError:
        raise
    except MemoryError:
        raise DatasetError(
            f"{path} is no usable pickle file: it has {len(contents):,} bytes and asks for more than {limit:,} bytes "
            "of memory; download it again"
        ) from None
    except _STREAM_ERRORS as error:
        raise DatasetError(f"{path} is not a complete pickle file: {error!s:.200}; download it again") from None


@contextlib.contextmanager
def _memory_limited(more: int) -> Iterator[None]:
    """Within, this process gets MemoryError for taking `more` bytes than it has now. Without effect outside Linux."""
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGESIZE") + more
        bounds = [value for value in (limit, soft, hard) if value != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
