"""`data.exclude`: samples of an image that a benchmark scores are left out of training, before anything is drawn.

RefCOCO, RefCOCO+ and RefCOCOg share images across their splits, and COCO train2017 holds them all. The benchmarks say
which images they score: see `pixel_sail.evaluate.held_out`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pixel_sail.data.identity import image_identity
from pixel_sail.data.sources.hf import HfSource
from pixel_sail.data.sources.joined import JoinedSource
from pixel_sail.data.sources.jsonl import JsonlSource
from pixel_sail.data.sources.record import Source
from pixel_sail.types import Sample


def identities(paths: Iterable[Path]) -> frozenset[str]:
    """The images of some files."""
    return frozenset(map(image_identity, paths))


def _images(source: Source, index: int) -> list[Path]:
    """The images of a sample, without decoding them."""
    if isinstance(source, JoinedSource):
        return _images(source.first, index)  # all of a conversation are about the same
    if isinstance(source, JsonlSource):
        return list(source.images(index))
    image = source.image_name(index) if isinstance(source, HfSource) else source.image(index)
    return [] if image is None else [image]


class RemainingSource:
    """A source without the samples of held-out images (see `pixel_sail.data.sources.Source`). Texts alone remain."""

    def __init__(self, source: Source, held_out: frozenset[str]) -> None:
        """`held_out`: from `identities`."""
        kept = [n for n in range(len(source)) if held_out.isdisjoint(identities(_images(source, n)))]
        self._source, self._kept = source, np.array(kept, dtype=np.int64)
        self.problems = source.problems
        self.excluded = len(source) - len(kept)  # samples left out

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, index: int) -> str:
        return self._source.key(int(self._kept[index]))

    def image(self, index: int) -> Path | bytes | None:
        return self._source.image(int(self._kept[index]))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        return self._source.sample(int(self._kept[index]), rng)
