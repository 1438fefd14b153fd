"""Reads pickles that hold plain data and nothing else: a pickle can name any function to call, these may name none."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from pixel_sail.data.errors import DatasetError

# What the C unpickler raises on a damaged stream, or when an opcode wants to call what is no function.
_STREAM_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)


class _NamesCode(Exception):
    """The stream wants to import something."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, text and numbers have opcodes of their own; everything else passes through these two methods."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NamesCode(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NamesCode(f"persistent object {pid!r}")


def load_plain_pickle(path: Path) -> Any:
    """Lists, tuples, dicts, sets, text, numbers, None. Python 2 text is read as UTF-8, or Latin-1 where it is not.

    Raises DatasetError for a missing file, a damaged one, or one that names code; nothing of it is run or imported.
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
            "lists, dicts, text and numbers. Get the official file, nothing of this one was run"
        ) from None
    except UnicodeDecodeError:
        raise
    except _STREAM_ERRORS as error:
        raise DatasetError(f"{path} is not a whole pickle file: {error}; download it again") from None
