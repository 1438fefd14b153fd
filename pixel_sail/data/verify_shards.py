"""Reads a whole folder of shards and names each file and sample that has changed since it was written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.shards import (
    INDEX,
    UNFINISHED,
    Shard,
    check_members,
    listed_shards,
    read_index,
    read_members,
    wrong_sizes,
)
from pixel_sail.durable import PARTIAL
from pixel_sail.types import BadSample

NAMES = re.compile(rf"\d{{6}}\.(tar|index\.json)|.*{re.escape(PARTIAL)}|{re.escape(UNFINISHED)}")  # that we give


def verify_shards(root: Path, progress: bool = False) -> list[str]:
    """One line for each file or sample that has changed since it was written. Raises DatasetError.

    shards.json has no checksum: its numbers are compared with those of the indices, where these are whole.
    """
    index = read_index(root)
    shards = listed_shards(index, root)
    problems = [
        problem
        for shard in tqdm(shards, unit="shard", disable=None if progress else True)
        for problem in _verify(root, shard)
    ]
    return problems + ([] if problems else _wrong_numbers(root, index, shards)) + _extra_files(root, shards)


def _wrong_numbers(root: Path, index: dict[str, Any], shards: Sequence[Shard]) -> list[str]:
    """One line for each number of shards.json that its whole indices do not have."""
    indices = [read_json(root / shard.index) for shard in shards]
    lines: list[str] = []
    counts = [sum(column) for column in zip(*(own["counts"] for own in indices), strict=True)]
    problems = [problem for own in indices for problem in (*own["problems"], *own.get("no_pixels", ()))]
    if index["samples"] != sum(counts) or index["samples_per_source"] != counts:
        lines.append(f"{INDEX}: its numbers of samples are not those of its shards, {counts}")
    if index["problems"][len(index["problems"]) - len(problems) :] != problems:
        lines.append(f"{INDEX}: its list of samples that were left out is not that of its shards")
    return [f"{line}; copy {INDEX} again, or make the shards again in another folder" for line in lines]


def _extra_files(root: Path, shards: Sequence[Shard]) -> list[str]:
    known = {name for shard in shards for name in (shard.file, shard.index)}
    names = sorted(path.name for path in root.iterdir())
    return [
        f"{name} is not one of the files of {INDEX}" for name in names if NAMES.fullmatch(name) and name not in known
    ]


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
