"""What an installed package brings along of the repository: the recipes and the small model (setup.py copies them)."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"  # configs/ and data/models/; not there in a clone, which has them itself


def here_or_shipped(path: Path) -> Path:
    """`path`, or where nothing is there and it is such a file or folder, the copy that comes with the package.

    So `pixel-sail train configs/finetune_scenes.yaml` works in any folder, and so does the start that it names.
    """
    if os.path.lexists(path) or path.is_absolute() or ".." in path.parts:
        return path
    copy = SHIPPED / path
    return copy if os.path.lexists(copy) else path  # False, too, for a name that no file can have
