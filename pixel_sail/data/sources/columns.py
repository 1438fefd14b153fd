"""Entries as columns of bytes: no Python object for each, so that forked workers share the memory that holds them.

A worker that reads a Python object writes its reference count, and so copies the page that it lies in. Bytes and
offsets are only read; objects are made of them when a sample is drawn.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Keyed(Protocol):
    """What a Sample is made of, with the key and the image that the Sample will carry."""

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> Path | None: ...


E = TypeVar("E", bound=Keyed)


@dataclass(frozen=True)
class Column:
    """Byte strings, one after the other."""

    data: Any  # bytes-like; its slices are bytes
    ends: np.ndarray  # (n + 1,) int64: number i is data[ends[i] : ends[i + 1]]

    @classmethod
    def of(cls, values: Iterable[bytes]) -> Column:
        data, ends = bytearray(), [0]
        for value in values:
            data += value
            ends.append(len(data))
        return cls(bytes(data), np.array(ends, dtype=np.int64))

    @classmethod
    def joined(cls, columns: Sequence[Column]) -> Column:
        starts = np.cumsum([0, *(len(column.data) for column in columns)])
        ends = [column.ends[1:] + start for column, start in zip(columns, starts, strict=False)]
        return cls(b"".join(column.data for column in columns), np.concatenate([np.zeros(1, dtype=np.int64), *ends]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.ends[index] : self.ends[index + 1]]


class Entries(Sequence[E], Generic[E]):
    """Entries that are made anew whenever they are asked for; their keys and images without the rest."""

    def __init__(self, keys: Column, paths: Column, bodies: Column, decode: Callable[[bytes], E]) -> None:
        """`decode` gives an entry from its body."""
        self.keys, self.paths, self.bodies, self._decode = keys, paths, bodies, decode

    @classmethod
    def packed(cls, entries: Sequence[E]) -> Entries[E]:
        """In memory. Pickle is safe here: nobody else writes to it."""
        return cls.coded(entries, partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL), pickle.loads)

    @classmethod
    def coded(cls, entries: Sequence[E], encode: Callable[[E], bytes], decode: Callable[[bytes], E]) -> Entries[E]:
        """In memory, with bodies from `encode`. Raises as that does."""
        keys, paths = Column.of(map(_key_bytes, entries)), Column.of(map(_path_bytes, entries))
        return cls(keys, paths, Column.of(map(encode, entries)), decode)

    @classmethod
    def joined(cls, parts: Sequence[tuple[Column, Column, Column]], decode: Callable[[bytes], E]) -> Entries[E]:
        """Keys, paths and bodies of several parts, one after the other."""
        return cls(*map(Column.joined, zip(*parts, strict=True)), decode)

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> E:
        return self._decode(self.bodies[self._within(index)])

    def key(self, index: int) -> str:
        return self.keys[self._within(index)].decode("utf-8", "surrogatepass")

    def path(self, index: int) -> Path | None:
        path = self.paths[self._within(index)].decode("utf-8", "surrogateescape")
        return Path(path) if path else None

    def _within(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        return index % len(self)


def _key_bytes(entry: Keyed) -> bytes:
    return entry.key.encode("utf-8", "surrogatepass")


def _path_bytes(entry: Keyed) -> bytes:
    """Empty without an image."""
    return b"" if entry.path is None else str(entry.path).encode("utf-8", "surrogateescape")
