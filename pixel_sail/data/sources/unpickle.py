"""Reads pickles of plain data only. A pickle can name any function to be called; these must not name any.

Neither may a small file grow: a stream can claim sizes that it does not have, and use one value many times ("a list of
ten lists of ten lists ..."). `_check_stream` reads its instructions before the unpickler does, and `_check_shared`
counts what the values would be if each were written out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_bytes
from pixel_sail.data.limits import MAX_SHARED

# Raised by the C unpickler on a damaged stream, or when an opcode calls something that is not a function.
_STREAM_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError),
    *(MemoryError, RecursionError),
)
_ARGUMENT_BYTES = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}
_LENGTH_BYTES = {-2: 1, -3: 4, -4: 4, -5: 8}  # of a size before the argument, by pickletools' codes for such arguments
_NAMES_CODE = frozenset(b"ci\x93PQ\x82\x83\x84")  # the unpickler stops at them
_PUTS = {ord("p"): 0, ord("q"): 1, ord("r"): 4, 0x94: 0}  # values get a number: as text, or of so many bytes
_GETS = frozenset(b"ghj")
_CONTAINERS = frozenset(b"]}()ltd\x85\x86\x87\x8f\x91")  # what has just made a list, dict, tuple or set
_SPARE_NUMBERS = 1000  # by which the numbers of values may run ahead of their count


class _NamesCode(Exception):
    """The stream asks to import something."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, text and numbers have their own opcodes; everything else comes through these two methods."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NamesCode(f"{module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NamesCode(f"persistent object {pid!r:.200}")


def load_plain_pickle(path: Path) -> Any:
    """Lists, tuples, dicts, sets, text, numbers, None. Python 2 text is read as UTF-8, or else as Latin-1.

    Raises DatasetError for a file that is missing, damaged, or names code, and for one that would grow when it is
    read. No code from the file is imported or run.
    """
    contents = read_bytes(path)
    uses_again = _check_stream(contents, path)
    try:
        values = _load(contents, path, encoding="utf-8")
    except UnicodeDecodeError:
        values = _load(contents, path, encoding="latin1")
    if uses_again:
        _check_shared(values, MAX_SHARED + len(contents), path)
    return values


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
        raise DatasetError(f"{path} is not a complete pickle file: {error!s:.200}; download it again") from None


def _check_stream(contents: bytes, path: Path) -> bool:
    """Whether a list, dict, tuple or set is used more than once. Raises DatasetError for sizes that the file has not.

    Stops, without an error, where the unpickler will: at an instruction that names code, or is damaged.
    """
    place, end, numbered, previous, uses_again = 0, len(contents), 0, 0, False
    containers: set[int] = set()  # numbers of values that are containers
    while place < end:
        code = contents[place]
        size = _ARGUMENT_BYTES.get(code)
        if size is None or code in _NAMES_CODE or code == 0x2E:  # "." ends the stream
            break
        start = place + 1
        if size == -1:  # up to the end of the line
            stop = contents.find(b"\n", start)
            argument, place = contents[start : min(stop, start + 20)], stop + 1
            if stop < 0:
                break
        elif size < 0:
            width = _LENGTH_BYTES[size]
            length = int.from_bytes(contents[start : start + width], "little")
            argument, place = b"", start + width + length
            if place > end:
                raise DatasetError(
                    f"{path} is not a complete pickle file: it claims a value of {length:,} bytes and ends before; "
                    "download it again"
                )
        else:
            argument, place = contents[start : start + size], start + size
        if code in _PUTS or code in _GETS:
            number = numbered if code == 0x94 else _number(code, argument)
            if number > 2 * numbered + _SPARE_NUMBERS:
                raise DatasetError(f"{path} is no usable pickle file: it gives a value the number {number:,}")
            if code in _GETS:
                uses_again |= number in containers
            else:
                numbered += 1
                (containers.add if previous in _CONTAINERS else containers.discard)(number)
        previous = code
    return uses_again


def _number(code: int, argument: bytes) -> int:
    """The number of a value, which stands in the stream as text or as bytes."""
    if code in (0x70, 0x67):  # "p", "g"
        return int(argument) if argument.isdigit() else 0
    return int.from_bytes(argument, "little")


def _check_shared(values: Any, limit: int, path: Path) -> None:
    """Raises DatasetError if the values, each written out wherever it is used, are more than `limit`."""
    sizes: dict[int, int | None] = {}  # of containers, by identity; None while it is being counted
    stack = [values]
    while stack:
        value = stack[-1]
        members = _members(value)
        if members is None or sizes.get(id(value)) is not None:
            stack.pop()
        elif id(value) not in sizes:
            sizes[id(value)] = None
            inner = [member for member in members if _members(member) is not None]
            if any(sizes.get(id(member), 0) is None for member in inner):
                raise DatasetError(f"{path} is no usable pickle file: one of its values contains itself")
            stack += inner
        else:
            stack.pop()
            sizes[id(value)] = size = 1 + sum(sizes.get(id(member)) or 1 for member in members)
            if size > limit:
                raise DatasetError(
                    f"{path} is no usable pickle file: it uses its values again and again; written out they would be "
                    f"{size:,}, more than {limit:,}"
                )


def _members(value: Any) -> list[Any] | None:
    """What a container holds; None for a text or a number."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else None
