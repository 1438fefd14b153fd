"""Files of many samples that lie anywhere: on a disk, behind a command (`pipe:`), on a web server, in object storage.

webdataset expands the patterns and opens the addresses. A file from elsewhere is fetched whole, once for all processes
of a machine, into the folder of kept files; then each of its samples is read by its place. The oldest ones go when they
take more than data.file_cache_gb, and are fetched again when they are needed again: results never depend on the cache.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import check_regular
from pixel_sail.data.shards import MAX_BYTES, OpenFile
from pixel_sail.data.sources.kept import FOLDER_VARIABLE, alone, own_cache_folder
from pixel_sail.durable import replaced_file

SUFFIX = ".samples"  # of kept files
TRIES = 3
FORMAT = 1  # raise it with every change of what a kept file holds
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_NAME = re.compile(r"[^\s/'\"?&=:]+\.\w+")
_TAIL = 3 * 8  # bytes of a kept file: where its rows begin, how many, their columns

Prepare = Callable[[str, BinaryIO], np.ndarray]  # (address, file to fill with what it has) -> rows (n, columns) int64


@dataclass(frozen=True)
class IndexedFile:
    """A file, and where in it the parts of each sample are."""

    file: OpenFile
    rows: np.ndarray  # (n, columns) int64

    def read(self, start: int, size: int) -> bytes:
        """Raises DatasetError where reading fails."""
        try:
            return os.pread(self.file.descriptor, size, start)
        except OSError as error:
            raise DatasetError(f"reading fails: {error.strerror}") from None


def expanded(files: str, root: Path) -> list[str]:
    """The addresses that a pattern of webdataset names: braces {00..99}, several patterns with "::" between them.

    What has no scheme is a path, relative to `root`, and may have wildcards. Raises DatasetError for a pattern that
    names nothing, or a file twice.
    """
    from webdataset.shardlists import expand_urls  # here: it takes a while

    try:
        patterns = expand_urls(files)
    except ValueError as error:  # braces that do not close
        raise DatasetError(f"{files!r:.300}: {error}") from None
    addresses: list[str] = []
    for pattern in patterns:
        if is_elsewhere(pattern):
            addresses.append(pattern)
        elif glob.has_magic(pattern):
            addresses += sorted(glob.glob(str(root / pattern)))
        else:
            addresses.append(str(root / pattern))
    if not addresses:
        raise DatasetError(f"{files!r:.300} names no file{'' if is_elsewhere(files) else f' in {root}'}")
    if len(set(addresses)) < len(addresses):
        raise DatasetError(f"{files!r:.300} names a file twice: its samples would come twice an epoch")
    return addresses


def is_elsewhere(address: str) -> bool:
    """Whether it is no path."""
    return _SCHEME.match(address) is not None


def file_name(address: str) -> str:
    """ "00012.tar" of "pipe:aws s3 cp s3://bucket/00012.tar -"; the address itself where no name is in it."""
    return (_NAME.findall(address) or [address])[-1]


def state_of(address: str) -> list[int]:
    """What changes with the contents of a file on a disk: bytes, time. Of one from elsewhere nothing is known.

    Raises DatasetError for a file that is not there, or is none.
    """
    if is_elsewhere(address):
        return []
    check_regular(Path(address), MAX_BYTES)
    status = os.stat(address)
    return [status.st_size, status.st_mtime_ns]


def fetch(address: str, out: BinaryIO) -> None:
    """Appends the whole of a file from elsewhere to `out`. Raises DatasetError where that fails."""
    from webdataset.gopen import gopen

    try:
        with contextlib.closing(gopen(address)) as stream:
            shutil.copyfileobj(stream, out, 2**20)
    except (OSError, ValueError, ImportError) as error:
        hint = " (write pipe:aws s3 cp s3://BUCKET/NAME.tar -)" if address.startswith("s3:") else ""
        raise DatasetError(f"{address!r:.300} cannot be fetched{hint}: {error!s:.300}") from None
    if not out.tell():
        raise DatasetError(f"{address!r:.300} gives nothing")


@contextlib.contextmanager
def as_local_file(address: str) -> Iterator[BinaryIO]:
    """The file, open for reading; one from elsewhere as a temporary copy. Raises DatasetError."""
    with contextlib.ExitStack() as stack:
        try:
            if is_elsewhere(address):
                file = stack.enter_context(tempfile.TemporaryFile(dir=own_cache_folder()))
                fetch(address, file)
                file.seek(0)
            else:
                file = stack.enter_context(open(address, "rb"))
        except OSError as error:
            raise DatasetError(f"cannot read {address!r:.300}: {error.strerror}") from None
        yield file


def open_indexed(address: str, kind: str, prepare: Prepare, in_place: bool, limit_bytes: float) -> IndexedFile:
    """The file with its index, from the cache if it is there, else prepared now while other processes wait.

    `kind`: of what `prepare` makes of an address. `in_place`: it fills a file only from elsewhere; one on a disk is
    read where it is. Raises DatasetError for a file that cannot be fetched or read.
    """
    state = state_of(address)
    stays = in_place and not is_elsewhere(address)
    folder = own_cache_folder()
    if folder is None:
        if is_elsewhere(address):
            raise DatasetError(f"{address!r:.300} needs a folder to be kept in: set {FOLDER_VARIABLE} to one of yours")
        with tempfile.TemporaryFile() as file:
            rows = prepare(address, file)
            file.flush()
            return IndexedFile(OpenFile.at(Path(address)) if stays else OpenFile(os.dup(file.fileno())), rows)
    asked = hashlib.sha256(repr([FORMAT, kind, address, state]).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    place = folder / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', file_name(address))[:80]}-{asked}{SUFFIX}"
    with alone(place):
        kept = _opened(place)
        for _ in range(TRIES):  # another process may need the room at once
            if kept is None:
                _keep(place, address, prepare)
                kept = _opened(place)
        if kept is None:
            raise DatasetError(
                f"{place} does not stay there: is data.file_cache_gb enough for 16 files of each source?"
            )
        with contextlib.suppress(OSError):
            os.utime(place)  # used last
    _drop_oldest(folder, place, limit_bytes)
    return IndexedFile(OpenFile.at(Path(address)), kept.rows) if stays else kept


def _keep(place: Path, address: str, prepare: Prepare) -> None:
    """Prepares a file. The lock is held: what is partial was left by a killed process."""
    for left in place.parent.glob(f"{place.stem}.*.partial"):
        left.unlink(missing_ok=True)
    try:
        with replaced_file(place, "wb+", place.with_suffix(f".{os.getpid()}.partial")) as file:
            rows = prepare(address, file)
            file.seek(0, os.SEEK_END)
            at = file.tell()
            file.write(np.ascontiguousarray(rows, dtype="<i8").tobytes())
            file.write(np.array([at, *rows.shape], dtype="<i8").tobytes())
    except OSError as error:
        raise DatasetError(f"{address!r:.300} cannot be kept in {place.parent}: {error.strerror}") from None


def _opened(place: Path) -> IndexedFile | None:
    """A kept file; None if it is not there, or not whole."""
    try:
        file = OpenFile(os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        size = os.fstat(file.descriptor).st_size
        at, count, columns = np.frombuffer(os.pread(file.descriptor, _TAIL, max(0, size - _TAIL)), "<i8").tolist()
        if min(at, count, columns) < 0 or at + 8 * count * columns + _TAIL != size:
            return None
        rows = np.frombuffer(os.pread(file.descriptor, 8 * count * columns, at), "<i8").reshape(count, columns)
    except (OSError, ValueError):
        return None
    return IndexedFile(file, rows)


def _drop_oldest(folder: Path, last: Path, limit_bytes: float) -> None:
    """Removes the kept files that were not used for longest, until the others fit; whoever has one open keeps it."""
    kept = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.stat()
            kept.append((status.st_mtime_ns, status.st_size, path))
    left = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if left <= limit_bytes:
            return
        if path != last:
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size
