"""Readers of annotations: one small file per family of formats, each gives Samples. No tokenizer, no tensors here."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pixel_sail.config import ConfigError, DataConfig, MixtureEntry
from pixel_sail.data.sources import grefer, refer
from pixel_sail.data.sources.referring import ReferringSource
from pixel_sail.data.templates import Templates
from pixel_sail.types import Sample


class Source(Protocol):
    """A dataset as Samples. `problems` lists, one line each, the annotations that were left out on reading."""

    problems: list[str]

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key that `sample(index, ...)` will carry, without reading it."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The same `index` and state of `rng` give the same Sample. Raises BadSample."""
        ...


def open_source(entry: MixtureEntry, data: DataConfig) -> Source:
    """Reads the annotations of a mixture entry. Raises ConfigError for an unknown name, DatasetError for bad files."""
    root = entry.root or data.root
    if entry.source in refer.NAMES:
        referring = refer.read_refer(root, entry.source, entry.split)
    elif entry.source == grefer.NAME:
        referring = grefer.read_grefer(root, entry.split)
    else:
        raise ConfigError(f"unknown source {entry.source!r}; known: {', '.join((*refer.NAMES, grefer.NAME))}")
    return ReferringSource(referring, Templates.of(data), data.expressions_per_image)
