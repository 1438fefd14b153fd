"""When two files are one image: for `data.exclude`, and for sources that are joined."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.\w+")


def image_identity(path: Path) -> str:
    """What two files of one image share: COCO's id, which a name of 12 digits states in all years; else the real path.

    "COCO_train2014_000000123456.jpg" and "000000123456.jpg" are one image.
    """
    match = _COCO_NAME.fullmatch(path.name)
    return f"COCO {int(match[1])}" if match else f"{_real(path.parent)}/{path.name}"


@lru_cache(maxsize=1024)
def _real(folder: Path) -> str:
    return str(folder.resolve())
