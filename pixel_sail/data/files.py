"""The door to files (pixel_sail/files.py), for datasets: what cannot be read is a DatasetError."""

from functools import partial
from pathlib import Path

from pixel_sail import files
from pixel_sail.data.errors import DatasetError

check_regular = partial(files.check_regular, error=DatasetError)
read_bytes = partial(files.read_bytes, error=DatasetError)
read_chunks = partial(files.read_chunks, error=DatasetError)
read_text = partial(files.read_text, error=DatasetError)
read_json = partial(files.read_json, error=DatasetError)
read_csv = partial(files.read_csv, error=DatasetError)


def exists(path: Path) -> bool:
    """Whether anything is there. Raises DatasetError where that cannot be found out."""
    try:
        return path.exists()
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r:.300}: {error.strerror}") from None
