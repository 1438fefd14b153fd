"""The source `shards`: samples drawn and stored by tools/make_shards.py. pixel_sail/data/shards.py reads them."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.config import DataConfig
from pixel_sail.data.shards import NAME, ShardSource, open_shards
from pixel_sail.data.sources.record import SourceRecord


def open_stored(root: Path, split: str, data: DataConfig) -> ShardSource:
    """`root` is the folder of the shards itself. Raises DatasetError, and ConfigError where `data` does not fit."""
    return open_shards(root, data)


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train",),
        files=(),
        sample="a stored sample",
        turn="as in the source that it was drawn from",
        open=open_stored,
        train_only=True,
        image_folders=(),
    ),
)
