"""The infinite stream of samples, a pure function: position -> source, index of the sample in it, randomness.

The stream knows nothing of ranks, workers or batches, so it is the same for any number of them and starts anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from pixel_sail.config import ClickConfig, Config, DataConfig, PromptConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.exclude import RemainingSource
from pixel_sail.data.refinement import with_clicks
from pixel_sail.data.regions import as_users_draw
from pixel_sail.data.shards import Sharded, ShardOrder, ShardSource
from pixel_sail.data.sources import Source, open_source
from pixel_sail.data.sources.image_text import ImageTextSource
from pixel_sail.data.zoom import as_zoomed
from pixel_sail.durable import fingerprint
from pixel_sail.ranks import local_ranks
from pixel_sail.types import Sample

BLOCK = 1000  # draws in which every source has exactly its share
FINGERPRINT_KEYS = 1000  # keys of each source in its fingerprint, evenly spread


class Mixture:
    """Draws from several sources by weight.

    Each block of `BLOCK` positions holds exactly the largest-remainder share of every source, in shuffled order; a
    source is read in epochs, each a permutation of all its samples (shards: one that reads few shards at a time).
    Raises DatasetError for an empty source and for a weight too small to give one draw in a block.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        seed: int,
        prompts: PromptConfig | None = None,
        zoom: float = 0.0,
        clicks: ClickConfig | None = None,
    ):
        if len(sources) != len(weights) or not sources:
            raise ValueError(
                f"{len(sources)} sources and {len(weights)} weights: a mixture needs one weight for each source"
            )
        self.sources = list(sources)
        self.seed = seed
        self.prompts, self.zoom, self.clicks = prompts or PromptConfig(), zoom, clicks
        self.draws_per_block = _largest_remainder(weights, BLOCK)
        for number, (source, draws) in enumerate(zip(self.sources, self.draws_per_block, strict=True)):
            if len(source) == 0:
                raise DatasetError(f"source {number} of the mixture is empty")
            if draws == 0:
                raise DatasetError(f"weight {weights[number]} of source {number} is below one sample in {BLOCK}")
        # Per instance and small: neighbouring positions share a block and an epoch.
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._order = lru_cache(maxsize=2 * len(self.sources))(self._make_order)

    def locate(self, position: int) -> tuple[int, int, int]:
        """(number of the source, index of its sample, epoch of that source) at a stream position >= 0."""
        block, offset = divmod(position, BLOCK)
        order, ordinal = self._block(block)
        number = int(order[offset])
        drawn = block * self.draws_per_block[number] + int(ordinal[offset])
        epoch, place = divmod(drawn, len(self.sources[number]))
        return number, int(self._order(number, epoch)[place]), epoch

    def key(self, position: int) -> str:
        """Key of the sample at a position, without reading it."""
        number, index, _ = self.locate(position)
        return self.sources[number].key(index)

    def image(self, position: int) -> Path | bytes | None:
        """The image of the sample at a position, of shards its first bytes; None for a text alone. Raises BadSample."""
        number, index, _ = self.locate(position)
        source = self.sources[number]
        return source.image_head(index) if isinstance(source, Sharded) else source.image(index)

    def sample(self, position: int) -> Sample:
        """The sample at a position, its regions drawn, and its masks refined, as users do; and with crops (data.zoom).

        Raises BadSample as the source does.
        """
        rng = np.random.default_rng((self.seed, position, 4))
        sample = as_users_draw(self.annotated(position), self.prompts, rng)
        sample = as_zoomed(sample, self.zoom, np.random.default_rng((self.seed, position, 7)))
        if self.clicks is None:
            return sample
        return with_clicks(sample, self.clicks, np.random.default_rng((self.seed, position, 6)))

    def annotated(self, position: int) -> Sample:
        """The sample at a position, as its source gives it; the generator depends on seed and position only."""
        number, index, _ = self.locate(position)
        return self.sources[number].sample(index, np.random.default_rng((self.seed, position)))

    def point_seed(self, position: int) -> int:
        """Seed (< 2**31) of the points at which the masks of the sample at this position are supervised."""
        return int(np.random.SeedSequence((self.seed, position, 1)).generate_state(1)[0] >> 1)

    def fingerprint(self) -> list[dict[str, int | str]]:
        """Length and hash of the keys of every source (shards: of their contents, which their index knows).

        A resumed run sees from it that the data have changed.
        """
        return [
            {"samples": len(source), "keys": source.digest() if isinstance(source, Sharded) else _hash_keys(source)}
            for source in self.sources
        ]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each offset, and how many draws of that source precede it in the block."""
        order = np.repeat(np.arange(len(self.sources)), self.draws_per_block)
        np.random.default_rng((self.seed, block, 2)).shuffle(order)
        ordinal = np.empty(BLOCK, dtype=np.int64)
        for number, draws in enumerate(self.draws_per_block):
            ordinal[order == number] = np.arange(draws)
        return order, ordinal

    def _make_order(self, number: int, epoch: int) -> np.ndarray | ShardOrder:
        """A permutation of the samples of a source, to be indexed by the place in the epoch."""
        source = self.sources[number]
        if isinstance(source, Sharded):
            return source.order((self.seed, number, epoch, 5))
        return np.random.default_rng((self.seed, number, epoch, 3)).permutation(len(source))


def open_mixture(config: Config, held_out: frozenset[str] = frozenset()) -> Mixture:
    """The training data of a config, without the images of `data.exclude`.

    `held_out`: these images, from `held_out_images(config)`; needed with `data.exclude`. Stored shards were made
    without them; those of image_text cannot be known, see `exclusion_lines`. Raises ConfigError and DatasetError as
    `open_source` does, and DatasetError if nothing of a source remains.
    """
    if config.data.exclude and not held_out:
        raise ValueError("the config has data.exclude: pass held_out=held_out_images(config)")
    sources = _open_sources(config.data)
    if held_out:
        sources = [s if isinstance(s, Sharded) else RemainingSource(s, held_out) for s in sources]
    for entry, source in zip(config.data.mixture, sources, strict=True):
        if isinstance(source, RemainingSource) and not len(source):
            raise DatasetError(
                f"data.exclude leaves nothing of {entry.source} ({entry.split}): all {source.excluded} samples are of "
                f"images of {', '.join(config.data.exclude)}"
            )
    weights, data = [entry.weight for entry in config.data.mixture], config.data
    return Mixture(sources, weights, config.run.seed, data.prompts, data.zoom, data.clicks)


def _open_sources(data: DataConfig) -> list[Source]:
    """Every process of a machine begins with another source: the first to come reads large annotations for all."""
    count = len(data.mixture)
    start = int(os.environ.get("LOCAL_RANK", 0)) * count // local_ranks()
    opened = {n % count: open_source(data.mixture[n % count], data) for n in range(start, start + count)}
    return [opened[n] for n in range(count)]


def exclusion_lines(config: Config, mixture: Mixture) -> list[str]:
    """For each source, how many samples `data.exclude` left out; nothing without it."""
    if not config.data.exclude:
        return []
    lines = [f"data.exclude: images of {', '.join(config.data.exclude)} are left out of training"]
    for entry, source in zip(config.data.mixture, mixture.sources, strict=True):
        name = f"data.exclude: {entry.source} ({entry.split}): "
        if isinstance(source, RemainingSource):
            lines.append(f"{name}{source.excluded} of {source.excluded + len(source)} samples are left out")
        elif isinstance(source, ShardSource):
            lines.append(f"{name}its shards were made without these images")
        elif isinstance(source, ImageTextSource):
            lines.append(f"{name}NOT CHECKED: images in tars have no names that could be compared")
    return lines


def _largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, as near to the weights as can be (Hamilton's method; ties go to the first)."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    counts = np.floor(exact).astype(int)
    for number in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[number] += 1
    return counts.tolist()


def _hash_keys(source: Source) -> str:
    indices = np.linspace(0, len(source) - 1, min(len(source), FINGERPRINT_KEYS)).astype(int)
    return fingerprint(f"{source.key(int(index))}\n".encode() for index in indices)
