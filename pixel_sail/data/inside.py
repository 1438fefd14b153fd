"""Names of files that an annotation gives: they stay below the folder to which they are joined.

Only the name is judged. A link below the folder may point elsewhere: whoever set up the folder made it, as one does to
mount a dataset (data/coco -> /datasets/coco), and an annotation cannot make one.
"""

from __future__ import annotations

import errno
import os
import reprlib
import stat
from pathlib import Path, PurePosixPath

from pixel_sail.types import BadSample

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


def inside(name: str, where: str) -> str:
    """The name itself. Raises BadSample, beginning with `where`, if it leads out of the folder, or can name no file."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise BadSample(
            f"{where}: the file name {reprlib.repr(name)} leads out of the dataset's folder; write it relative to that "
            "folder and without '..' (files elsewhere may be linked into it)"
        )
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise BadSample(f"{where}: {reprlib.repr(name)} can be the name of no file") from None
    if "\0" in name:
        raise BadSample(f"{where}: {reprlib.repr(name)} can be the name of no file")
    return name


def is_file(path: Path, where: str) -> bool:
    """Whether a regular file is there. Raises BadSample, beginning with `where`, where that cannot be found out."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise BadSample(f"{where}: cannot read {str(path)!r:.300}: {error.strerror}") from None
