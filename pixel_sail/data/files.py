"""Reading annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError


def read_json(path: Path) -> Any:
    """Parsed contents. Raises DatasetError for a missing file and for one that is not valid JSON."""
    if not path.is_file():
        raise DatasetError(f"no file {path}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from None
