"""Entries of large annotation files, kept in a file of the user's cache once they are read.

Reading and checking a gigabyte of JSON takes minutes, and each process of a machine would do it. The first one writes
what it got; the others, and later runs, map that file into memory, which all of them share. A kept file holds JSON and
offsets, nothing that could be run. It is used only if it belongs to this user, is whole (checksum), and was made by
this code from the same annotation files (path, size, time) beside the same folders of images; otherwise it is made
anew. Without a place to write, everything works as it does for small files: each process reads them for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import mmap
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.sources.coded import Inexact, decoder, encoder
from pixel_sail.data.sources.columns import Column, E, Entries
from pixel_sail.data.sources.folders import Folders, folder_state
from pixel_sail.durable import replaced_file

SMALLEST_BYTES = 16 * 2**20  # of the annotation files; smaller ones are read faster than this is worth
FOLDER_VARIABLE = "PIXEL_SAIL_CACHE"  # the folder of kept files; "" : nothing is kept
_MAGIC = b"pixel_sail entries 1\n"
_TAIL = 3 * 8  # bytes: where the description begins, its length, and the CRC-32 of all before
_CODE = Path(__file__).resolve().parents[2]
_CHUNK = 2**22


def kept_entries(
    name: str,
    files: Sequence[Path],
    folders: Folders,
    kind: Any,
    problems: list[str],
    read: Callable[[], Sequence[E]],
) -> Entries[E]:
    """What `read()` gives, from the kept file if there is one for these annotation `files`; `problems` get the same.

    `kind` is the class of the entries, "RegionImage[Referent]" where it is generic. `read` adds to `problems` and asks
    for images through `folders`; if it gives Entries, their bodies are of `encoder(kind)`. The same `name`, `files` and
    contents must give the same entries. Raises as `read`.
    """
    place = _place(name, files)
    if place is None:
        return _packed(read())
    with alone(place):  # the other processes of the machine wait for the first
        kept = _open(place, files, kind, problems)
        if kept is not None:
            return kept
        before, state = len(problems), _state(files)
        entries = read()
        try:
            exact = entries if isinstance(entries, Entries) else Entries.coded(entries, encoder(kind), decoder(kind))
            _write(place, exact, state, folders, problems[before:])
        except Inexact:
            return _packed(entries)
        except OSError as error:
            _note(f"{place} cannot be written ({error.strerror}): each process reads the annotations")
            return exact
        kept = _open(place, files, kind, list(problems))
        return exact if kept is None else kept


def _packed(entries: Sequence[E]) -> Entries[E]:
    return entries if isinstance(entries, Entries) else Entries.packed(entries)


def cache_folder() -> Path | None:
    """Where kept files are: $PIXEL_SAIL_CACHE, else pixel_sail in the cache folder of the user. None: nowhere."""
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE]).absolute() if os.environ[FOLDER_VARIABLE] else None
    with contextlib.suppress(RuntimeError):  # no home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "pixel_sail"
    return None


def own_cache_folder() -> Path | None:
    """The cache folder, made if it is not there; None without one, and for one that is not ours alone."""
    folder = cache_folder()
    try:
        if folder is None:
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.stat(folder)
    except (OSError, ValueError):
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        _note(f"{folder} can be written to by others: nothing is kept there")
        return None
    return folder


def _place(name: str, files: Sequence[Path]) -> Path | None:
    """The kept file; None where nothing is kept: small annotation files, missing ones, no folder that is ours alone."""
    try:
        if sum(os.stat(file).st_size for file in files) < SMALLEST_BYTES:
            return None
    except (OSError, ValueError):
        return None
    folder = own_cache_folder()
    if folder is None:
        return None
    asked = json.dumps([name, *(os.path.abspath(file) for file in files), *map(str, files)])
    readable = re.sub(r"[^\w.+-]+", "_", name)[:80]
    return folder / f"{readable}-{hashlib.sha256(asked.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.entries"


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Waits until no other process reads or makes this kept file. On file systems without locks, for nobody."""
    descriptor = None
    try:
        with contextlib.suppress(OSError):
            descriptor = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@functools.cache
def _code() -> str:
    """Of the code that decides what is read from the same files."""
    digest = hashlib.sha256()
    for path in sorted([*(_CODE / "data").rglob("*.py"), *_CODE.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _state(files: Sequence[Path]) -> list[Any]:
    """What must be the same for a kept file to hold."""
    return [_code(), [[str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in files]]


def _write(place: Path, entries: Entries[Any], state: list[Any], folders: Folders, problems: list[str]) -> None:
    partial = place.with_suffix(f".{os.getpid()}.partial")
    with replaced_file(place, "wb+", partial) as file:
        file.write(_MAGIC)
        ends = np.zeros((3, len(entries) + 1), dtype=np.int64)
        for number, column in enumerate((entries.keys, entries.paths, entries.bodies)):
            ends[number] = column.ends + file.tell()
            file.write(column.data)
        file.write(bytes(-file.tell() % 8))
        ends_at = file.tell()
        file.write(ends.tobytes())
        values = {"state": state, "folders": folders.states(), "ends": [ends_at, len(entries)], "problems": problems}
        described = json.dumps(values).encode()
        at = file.tell()
        file.write(described)
        file.write(np.array([at, len(described)], dtype=np.int64).tobytes())
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
            checksum = _checksum(written, len(written))
        file.write(np.array([checksum], dtype=np.int64).tobytes())


def _open(place: Path, files: Sequence[Path], kind: Any, problems: list[str]) -> Entries[Any] | None:
    """None for no file, one of another state, and one that is damaged, for which a note is printed."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return None
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        values = _described(data)
    except (OSError, ValueError) as error:
        _note(f"{place} is damaged ({error}); it is made anew")
        return None
    finally:
        os.close(descriptor)
    is_same = values["state"] == _state(files)
    if not is_same or any(folder_state(folder) != state for folder, state in values["folders"]):
        return None
    at, count = values["ends"]
    ends = np.frombuffer(data, np.int64, 3 * (count + 1), at).reshape(3, count + 1)
    problems += values["problems"]
    return Entries(*(Column(data, column) for column in ends), decoder(kind))


def _described(data: mmap.mmap) -> dict[str, Any]:
    """Raises ValueError for a file that is not whole."""
    if len(data) < len(_MAGIC) + _TAIL or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as one")
    at, length, checksum = np.frombuffer(data[-_TAIL:], np.int64).tolist()
    if _checksum(data, len(data) - 8) != checksum:
        raise ValueError("its checksum does not fit")
    return json.loads(data[at : at + length])


def _checksum(data: mmap.mmap, stop: int) -> int:
    checksum = 0
    for start in range(0, stop, _CHUNK):
        checksum = zlib.crc32(data[start : min(start + _CHUNK, stop)], checksum)
    return checksum


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
