"""The values of weight files, read once: SHA-256 of each file, and the extremes of each weight."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixel_sail.errors import WeightsError
from pixel_sail.folders.checksums import CHECKSUMS, check_sums
from pixel_sail.folders.weight_files import FLOATS, WeightFiles, check_finite

CHUNK_BYTES = 2**20  # is hashed and searched while it is in the cache of a core


@dataclass(frozen=True)
class Values:
    """`extremes`: by name of a weight, its least and its largest value, (2,), NaN where it holds NaN."""

    folder: Path
    extremes: dict[str, Tensor]

    def check_finite(self, dtype: torch.dtype) -> None:
        """Raise WeightsError that lists the weights that are NaN or infinite, or become so in `dtype`."""
        check_finite({name: extremes.to(dtype) for name, extremes in self.extremes.items()}, self.folder)


def read_values(files: WeightFiles) -> Values:
    """Read all weights of a folder. Raises WeightsError for a file that differs from checksums.json (`check_sums`)."""
    hashed = (files.folder / CHECKSUMS).exists()
    with ThreadPoolExecutor() as pool:
        read = dict(zip(files.paths, pool.map(lambda path: _read(path, hashed), files.paths), strict=True))
    check_sums(files.folder, {path.name: digest for path, (digest, _) in read.items()})
    return Values(files.folder, {name: pair for _, extremes in read.values() for name, pair in extremes.items()})


def _read(path: Path, hashed: bool) -> tuple[str, dict[str, Tensor]]:
    """The SHA-256 of a file if it is to be hashed, and the extremes of its weights. Its header has been checked."""
    digest, extremes = hashlib.sha256(), defaultdict(list)
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        head = file.read(8)
        header = file.read(int.from_bytes(head, "little"))
        digest.update(head + header)
        for name, dtype, size in _chunks(json.loads(header)):
            chunk = memoryview(buffer)[:size]
            if file.readinto(chunk) != size:
                raise WeightsError(f"{path} ends before its last weight: it changes while it is read; try again")
            if hashed:
                digest.update(chunk)
            if dtype is not None:
                extremes[name] += torch.aminmax(torch.frombuffer(chunk, dtype=dtype))
    pairs = {name: torch.stack(torch.aminmax(torch.stack(found))) for name, found in extremes.items()}
    return digest.hexdigest(), pairs


def _chunks(header: dict) -> Iterator[tuple[str, torch.dtype | None, int]]:
    """(name, dtype or None for no floating one, bytes) of each piece of a file, in its order; no piece is empty."""
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        for offset in range(start, stop, CHUNK_BYTES):
            yield name, FLOATS.get(entry["dtype"]), min(CHUNK_BYTES, stop - offset)
