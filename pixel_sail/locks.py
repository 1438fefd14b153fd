"""One process at a time where two would spoil each other's files. A lock dies with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pixel_sail.errors import UserError

_held: set[Path] = set()  # by this process: the kernel would give it the same lock twice


class Busy(UserError):
    """Another process works there."""


def lock_beside(folder: Path) -> Path:
    """The lock file of a folder that may be replaced as a whole, or is not there yet: beside it."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; it is removed at the end. `what` is locked, for the message: "the run runs/a".

    Raises Busy, naming the owner, if another process holds it. Processes that are forked meanwhile do not hold it.
    A file system without locks (some network drives) is not an error: the work goes on unlocked.
    """
    path = path.absolute()
    if path in _held:
        raise Busy(f"{what} is in use by this very process")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, what)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return descriptor
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise Busy(
                f"{what} is in use by {owner or 'another process'}; wait until it has ended, or end it"
            ) from None
        if _still_there(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # the owner before us removed the file between our two calls


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
