"""From stream positions to the data of one rank in one optimizer step."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from pixel_sail.data.mixture import Mixture
from pixel_sail.data.pack import split_into_micro_batches
from pixel_sail.types import BadSample, Batch, Encoded, NoPixels, Sample

FILLER_TRIES = 1000  # stream positions searched for a usable sample if all samples of a rank are bad


@dataclass(frozen=True)
class BadRecord:
    """A sample that was left out of a step, and the reason."""

    step: int
    position: int
    key: str
    message: str
    no_pixels: bool = False  # its objects are smaller than a pixel: no fault of a file, and not counted as one


@dataclass(frozen=True)
class StepData:
    """The share of one rank in one optimizer step."""

    step: int
    batches: tuple[Batch, ...]  # micro-batches; empty when every sample was bad
    filler: Batch  # computed with loss weight 0 where other ranks have more micro-batches: collectives must match
    samples: int
    bad: tuple[BadRecord, ...]


class StepDataset(Dataset):
    """Item s is this rank's StepData of optimizer step s: every world-th of its `batch_size` stream positions.

    `encode` is called as encode(sample, seed) and may raise BadSample; every other exception propagates.
    """

    def __init__(
        self,
        mixture: Mixture,
        encode: Callable[[Sample, int], Encoded],
        pack: Callable[[list[Encoded]], Batch],
        batch_size: int,
        budget_tokens: int,
        rank: int,
        world_size: int,
    ):
        self.mixture = mixture
        self.encode = encode
        self.pack = pack
        self.batch_size = batch_size
        self.budget_tokens = budget_tokens
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> StepData:
        first = step * self.batch_size
        results = [self._encode(step, i) for i in range(first + self.rank, first + self.batch_size, self.world_size)]
        encoded = [result for result in results if isinstance(result, Encoded)]
        bad = tuple(result for result in results if isinstance(result, BadRecord))
        micro = split_into_micro_batches(encoded, self.budget_tokens)
        batches = tuple(self.pack(group) for group in micro)
        filler = min(batches, key=lambda batch: batch.tokens) if batches else self._find_filler(step)
        return StepData(step, batches, filler, len(encoded), bad)

    def _encode(self, step: int, position: int) -> Encoded | BadRecord:
        try:
            return self.encode(self.mixture.sample(position), self.mixture.point_seed(position))
        except BadSample as error:
            return BadRecord(step, position, self.mixture.key(position), str(error), isinstance(error, NoPixels))

    def _find_filler(self, step: int) -> Batch:
        """A usable batch from later in the stream; it is computed, but does not count."""
        start = (step + 1) * self.batch_size
        for position in range(start, start + FILLER_TRIES):
            result = self._encode(step, position)
            if isinstance(result, Encoded):
                return self.pack([result])
        raise BadSample(
            f"step {step}: no usable sample in {FILLER_TRIES} stream positions from {start}; last: {result}"
        )


def load_steps(dataset: StepDataset, start: int, stop: int, workers: int) -> Iterator[StepData]:
    """StepData of steps start .. stop - 1, prepared ahead by `workers` processes (0: in this one).

    Workers are forked, so they share the sources' memory. Each uses one thread.
    """
    _raise_open_files_limit()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_one_thread,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # the loader's seed must not advance the global generator
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _unchanged(item: StepData) -> StepData:
    return item


def _raise_open_files_limit() -> None:
    # Every tensor from a worker is an open file; a large batch has more of them than the usual limit of 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
