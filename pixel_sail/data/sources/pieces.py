"""Large annotation files that hold a list: read piece by piece, by several processes.

A piece is a few entries with the commas between them. If each piece, put into brackets, is valid JSON, then so is the
whole, and its list is that of all pieces, one after the other: a wrong place to cut would leave a piece that is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pixel_sail.data.files import check_regular, read_chunks
from pixel_sail.data.sources import kept
from pixel_sail.data.sources.coded import Inexact, decoder, encoder
from pixel_sail.data.sources.columns import Column, Entries
from pixel_sail.data.sources.entries import numbered, parse_usable, read_entries, refuse_nothing
from pixel_sail.data.sources.folders import Folders
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.files import parse_json
from pixel_sail.ranks import local_ranks
from pixel_sail.workers import WorkerDied, in_order

T = TypeVar("T")

PIECE_BYTES = 4 * 2**20  # its objects take ten times as much
MAX_WORKERS = 8  # of one process
_SPACE = b" \t\r\n"  # of JSON
_FIRST_KEY = re.compile(rb'[ \t\r\n]*\[[ \t\r\n]*(\{[ \t\r\n]*"[^"\\]*"[ \t\r\n]*:)')


class _NotInPieces(Exception):
    """The whole file must be read at once."""


class _Piece(NamedTuple):
    first: int  # number of its first entry
    count: int  # entries
    text: bytes


class _Read(NamedTuple):
    columns: tuple[Column, Column, Column]
    problems: list[str]
    folders: list[tuple[str, int | None]]  # as Folders.states


def kept_list(
    path: Path, name: str, kind: Any, parse: Callable[[Any, str], T], problems: list[str], folders: Folders
) -> Entries[T]:
    """As `read_entries`, from the kept file if there is one (see `kept_entries`, also for `kind` and `folders`)."""

    def read() -> Sequence[T]:
        entries = _in_pieces(path, name, kind, parse, problems, folders)
        return read_entries(path, name, parse, problems) if entries is None else entries

    return kept_entries(name, (path,), folders, kind, problems, read)


def _in_pieces(
    path: Path, name: str, kind: Any, parse: Callable[[Any, str], T], problems: list[str], folders: Folders
) -> Entries[T] | None:
    """None for a small file, for one that cannot be read in pieces, and for one with any fault."""
    if check_regular(path) < kept.SMALLEST_BYTES:
        return None
    encode = encoder(kind)

    def read(piece: _Piece) -> _Read:
        before = len(problems)
        try:
            values = parse_json(f"[{piece.text.decode()}]")
            if len(values) != piece.count:
                raise _NotInPieces
            entries = parse_usable(numbered(values, name, piece.first), parse, problems)
            packed = Entries.coded(entries, encode, decoder(kind))
        except (ValueError, Inexact):
            raise _NotInPieces from None
        finally:
            added = problems[before:]
            del problems[before:]
        return _Read((packed.keys, packed.paths, packed.bodies), added, folders.states())

    try:
        parts = list(in_order(read, _cut(read_chunks(path, PIECE_BYTES)), _workers()))
    except (OSError, WorkerDied, _NotInPieces):  # OSError: no process can be started
        return None
    for part in parts:
        problems += part.problems
        folders.add_states(part.folders)
    entries = Entries.joined([part.columns for part in parts], decoder(kind))
    refuse_nothing(entries, path, problems)
    return entries


def _cut(chunks: Iterator[bytes]) -> Iterator[_Piece]:
    """Cuts where an object ends and the next begins with the first key of the file, written like between the first two.

    Raises _NotInPieces for another kind of file.
    """
    text = next(chunks, b"")
    opening = _FIRST_KEY.match(text)
    between = opening and re.search(rb"\}[ \t\r\n]*,[ \t\r\n]*" + re.escape(opening[1]), text)
    if not between:
        raise _NotInPieces
    separator, first = between[0], 0
    text = text[opening.start(1) :]
    for more in chunks:
        cut = text.rfind(separator)
        if cut >= 0:
            count = text.count(separator, 0, cut) + 1
            yield _Piece(first, count, text[: cut + 1])
            first, text = first + count, text[cut + separator.index(b",") + 1 :]
        text += more
    text = text.rstrip(_SPACE)
    if not text.endswith(b"]"):
        raise _NotInPieces
    yield _Piece(first, text.count(separator) + 1, text[:-1])


def _workers() -> int:
    """Processes beside this one: its share of the cores. 0: this one alone."""
    share = (os.cpu_count() or 1) // local_ranks()
    return 0 if share < 2 else min(share, MAX_WORKERS)
