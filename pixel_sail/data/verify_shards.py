"""Reads a whole folder of shards and names each file and sample that has changed since it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.shards import Shard, check_members, listed_shards, read_index, read_members, wrong_sizes
from pixel_sail.types import BadSample


def verify_shards(root: Path, progress: bool = False) -> list[str]:
    """One line for each file or sample that has changed since it was written. Raises DatasetError."""
    shards = listed_shards(read_index(root), root)
    return [problem for shard in tqdm(shards, unit="shard", disable=not progress) for problem in _verify(root, shard)]


def _verify(root: Path, shard: Shard) -> Iterator[str]:
    if problems := wrong_sizes(root, shard):
        yield from problems  # a missing or cut file must be made again, whatever its contents
        return
    try:
        entries = read_members(root, shard)
    except DatasetError as error:
        yield str(error)
        return
    with (root / shard.file).open("rb") as tar:
        if hashlib.file_digest(tar, "sha256").hexdigest() == shard.sha256:
            return
        damaged = [line for entry in entries for line in _damage(tar, entry, shard.file)]
    yield from damaged or [f"{shard.file} has changed since it was written (sha256), though not in its samples"]


def _damage(tar: BinaryIO, entry: dict[str, Any], where: str) -> Iterator[str]:
    for suffix, member in entry["members"].items():
        tar.seek(member[0])
        try:
            check_members(tar.read(member[1]), member[0], {suffix: member}, f"{where}: {entry['name']}")
        except BadSample as error:
            yield f"{error} (sample {entry['key']})"
