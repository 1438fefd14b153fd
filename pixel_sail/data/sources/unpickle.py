"""Reads pickles of plain data only. A pickle can name any function to be called; these must not name any."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from pixel_sail.data.errors import DatasetError

# Raised by the C unpickler on a damaged stream, or when an opcode calls something that is not a function.
_STREAM_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)


class _NamesCode(Exception):
    """The stream asks to import something."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, text and numbers have their own opcodes; everything else comes through these two methods."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NamesCode(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NamesCode(f"persistent object {pid!r}")


def load_plain_pickle(path: Path) -> Any:
    """Lists, tuples, dicts, sets, text, numbers, None. Python 2 text is read as UTF-8, or else as Latin-1.

    Raises DatasetError for a file that is missing, damaged, or names code. No code from the file is imported or run.
    """
    if not path.is_file():
        raise DatasetError(f"no file {path}")
    contents = path.read_bytes()
    try:
        return _load(contents, path, encoding="utf-8")
    except UnicodeDecodeError:
        return _load(contents, path, encoding="latin1")


def _load(contents: bytes, path: Path, encoding: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(contents), encoding=encoding).load()
    except _NamesCode as error:
        raise DatasetError(
            f"refused {path}: the pickle asks for {error}, which could run code; an annotation file holds only "
            "lists, dicts, text and numbers. Nothing from this file was run; download the official one"
        ) from None
    except UnicodeDecodeError:
        raise
    except _STREAM_ERRORS as error:
        raise DatasetError(f"{path} is not a complete pickle file: {error}; download it again") from None
