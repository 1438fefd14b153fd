"""Files and folders that are still there, under their names, after a power cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def sync_path(path: Path) -> None:
    """fsync of a closed file, or of a folder: of the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(file: IO[Any], partial: Path, path: Path) -> None:
    """Gives the file that was written at `partial` its name once it is on the disk, and the name too."""
    file.flush()
    os.fsync(file.fileno())
    partial.replace(path)
    sync_path(path.parent)
