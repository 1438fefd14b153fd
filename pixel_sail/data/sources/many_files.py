"""A source of many files that lie anywhere (anywhere.py): which sample is where in them, and in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import exists, read_json
from pixel_sail.data.shards import GROUP, ShardOrder
from pixel_sail.data.sources.anywhere import (
    IndexedFile,
    Prepare,
    expanded,
    file_name,
    is_elsewhere,
    open_indexed,
    state_of,
)
from pixel_sail.data.sources.kept import alone, own_cache_folder
from pixel_sail.durable import fingerprint, write_json
from pixel_sail.types import BadSample


@dataclass(frozen=True)
class FileKind:
    """What the files of a source are."""

    name: str  # of the source
    suffixes: tuple[str, ...]  # of its files in a folder
    prepare: Prepare
    in_place: bool  # a file on a disk is read where it is
    made_by: str  # what `prepare` depends on


class FileSource:
    """The part of a Source that is the same for image_text and text. `sample` is in the subclasses.

    The positions of the stream are dealt to ranks and workers, and not the files: any number of them shares any number
    of files, each sample comes once an epoch, and a run resumes at any position. See docs/base.md.
    """

    def __init__(self, kind: FileKind, addresses: Sequence[str], counts: Sequence[int], limit_bytes: float) -> None:
        """`counts`: the samples of each file."""
        self.problems: list[str] = []
        self._kind, self._addresses, self._counts, self._limit_bytes = kind, list(addresses), list(counts), limit_bytes
        names = list(map(file_name, addresses))
        self._names = names if len(set(names)) == len(names) else self._addresses
        self._ends = np.cumsum(counts)  # one past the last sample of each file
        # Per instance. Two groups, because one may end and the next begin within a step.
        self._file = lru_cache(maxsize=2 * GROUP)(self._open_file)
        self._failed: dict[int, str] = {}  # files that are not tried again

    def __len__(self) -> int:
        return int(self._ends[-1])

    def key(self, index: int) -> str:
        """ "image_text/00012.tar/345", the last from 0."""
        number, place = self._find(index)
        return f"{self._kind.name}/{self._names[number]}/{place}"

    def order(self, seed: tuple[int, ...]) -> ShardOrder:
        """The order of one epoch."""
        return ShardOrder(self._counts, seed)

    def digest(self) -> str:
        """Of the names of all files, and how many samples they have."""
        return fingerprint(f"{name} {n}\n".encode() for name, n in zip(self._names, self._counts, strict=True))

    def _where(self, index: int) -> tuple[IndexedFile, list[int]]:
        """The file of a sample, and its row. Raises BadSample where the file cannot be had, or lacks the sample.

        Raises DatasetError for a file that has more samples than was counted: nobody would ever see these.
        """
        number, place = self._find(index)
        try:
            if number in self._failed:
                raise DatasetError(self._failed[number])
            file = self._file(number)
        except DatasetError as error:
            self._failed[number] = str(error)
            raise BadSample(f"{self.key(index)}: {error}") from None
        there, counted = len(file.rows), self._counts[number]
        if there > counted:
            raise DatasetError(
                f"{self._names[number]} has {there:,} samples, and {counted:,} were counted: count again"
            )
        if place >= there:
            raise BadSample(f"{self.key(index)}: the file has {there:,} samples, and {counted:,} were counted")
        return file, file.rows[place].tolist()

    def _find(self, index: int) -> tuple[int, int]:
        """(number of the file, place in it) of a sample."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self._counts[number]

    def _open_file(self, number: int) -> IndexedFile:
        return _open(self._kind, self._addresses[number], self._limit_bytes)


def files_of(kind: FileKind, entry: MixtureEntry, data: DataConfig) -> tuple[list[str], list[int]]:
    """The addresses of the files of an entry, and the number of samples in each.

    Raises DatasetError for files that are not there or cannot be read, and ConfigError for remote ones without `sizes`.
    """
    root = entry.root or data.root
    addresses = expanded(entry.files, root) if entry.files else _in_folder(root / kind.name / entry.split, kind)
    if entry.sizes is not None:
        return addresses, _listed(addresses, entry.sizes)
    if any(map(is_elsewhere, addresses)):
        raise ConfigError(
            f"source {kind.name}: how many samples the files {entry.files!r:.200} have must be known before they are "
            f"fetched. Count them once: tools/prepare_data.py count {kind.name} FILES --out sizes.json, and give "
            "sizes: sizes.json beside files"
        )
    counts = counted(kind, addresses, data.file_cache_gb)
    if not sum(counts):
        raise DatasetError(f"nothing of {addresses[0]} can be used: it has no sample")
    return addresses, counts


def counted(kind: FileKind, addresses: Sequence[str], cache_gb: float) -> list[int]:
    """The number of samples in each file, which is read for that; kept beside the files if all are on a disk.

    Raises DatasetError for a file that cannot be read.
    """
    folder = own_cache_folder()
    if folder is None or any(map(is_elsewhere, addresses)):
        return [_count(kind, address, cache_gb) for address in addresses]
    state = [[kind.name, kind.made_by], [[address, *state_of(address)] for address in addresses]]
    place = folder / f"counts-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]}.json"
    with alone(place):
        if exists(place):
            kept = read_json(place)
            if isinstance(kept, list) and len(kept) == len(addresses) and all(type(n) is int and n >= 0 for n in kept):
                return kept
        counts = [_count(kind, address, cache_gb) for address in addresses]
        write_json(place, counts, indent=None)
        return counts


def _count(kind: FileKind, address: str, cache_gb: float) -> int:
    return len(_open(kind, address, cache_gb * 1e9).rows)


def _open(kind: FileKind, address: str, limit_bytes: float) -> IndexedFile:
    return open_indexed(address, f"{kind.name} {kind.made_by}", kind.prepare, kind.in_place, limit_bytes)


def _in_folder(folder: Path, kind: FileKind) -> list[str]:
    """The files of a split in a data root, by name."""
    if not exists(folder):
        raise DatasetError(f"no folder {folder}; give `files`, or put them there")
    files = sorted(str(path) for path in folder.iterdir() if path.name.endswith(kind.suffixes))
    if not files:
        raise DatasetError(f"{folder} has no file {' or '.join(f'*{suffix}' for suffix in kind.suffixes)}")
    return files


def _listed(addresses: Sequence[str], sizes: Path) -> list[int]:
    """The counts that a file gives, by address or by name of the file. Raises DatasetError."""
    listed = read_json(sizes)
    counts = [listed.get(a, listed.get(file_name(a))) if isinstance(listed, dict) else None for a in addresses]
    wrong = next((a for a, count in zip(addresses, counts, strict=True) if type(count) is not int or count < 0), None)
    if wrong is not None:
        raise DatasetError(
            f"{sizes} does not say how many samples {file_name(wrong)!r:.200} has; expected {{file name: number}}, as "
            "tools/prepare_data.py count writes it"
        )
    if not sum(counts):
        raise DatasetError(f"{sizes} lists no sample")
    return counts
