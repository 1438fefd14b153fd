"""Can results be written there? Asked before the work, which may take days; and where it was that writing failed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pixel_sail.errors import FileError


def check_writable(folder: Path, needed_bytes: int = 0) -> None:
    """Raises FileError if no file can be written into `folder`, or if its disk has less than `needed_bytes` free.

    The folder need not exist yet; it is not made.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise FileError(f"cannot write into {folder}: {place} is not a folder; give another place")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise FileError(
            f"cannot write into {folder}: {error.strerror}; give a folder that can be written, or change this"
        ) from None
    if free < needed_bytes:
        raise FileError(
            f"{folder} would need about {_gigabytes(needed_bytes)}, and {_gigabytes(free)} are free on its disk; free "
            "some space, ask for less, or give another place"
        )


@contextlib.contextmanager
def writing_into(place: Path) -> Iterator[None]:
    """The error of a full disk does not say where it was. Inside, it names `place`, a folder or a file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
