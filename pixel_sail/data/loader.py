"""From stream positions to the data of one rank in one optimizer step."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pixel_sail.data.deal import Costs, cut, deal, dealing_ranks
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.mixture import Mixture
from pixel_sail.errors import UserError
from pixel_sail.types import BadSample, Batch, Encoded, NoPixels, Sample
from pixel_sail.workers import begin_worker, signals_wait

FILLER_TRIES = 1000  # stream positions searched for a usable sample if all samples of a rank are bad
STEP_TIMEOUT_S = 1800  # for the data of a step, once the run waits for them
SHARED_MEMORY = Path("/dev/shm")
WAITING = 2  # items that each worker prepares ahead (DataLoader's prefetch_factor)
MIB = 2**20
WORKER_END_S = 0.5  # from the first sign of it, at most


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
    dealt_by: int = 0  # checksum of the costs by which the samples were dealt: the ranks must have the same
    unsized: tuple[str, ...] = ()  # why the costs of some of these are not known

    def pin_memory(self) -> StepData:
        """The same data in pinned memory of the host; torch's DataLoader calls this. Needs a GPU."""
        batches = tuple(batch.pin_memory() for batch in self.batches)
        by_id = {id(batch): pinned for batch, pinned in zip(self.batches, batches, strict=True)}
        return replace(self, batches=batches, filler=by_id.get(id(self.filler)) or self.filler.pin_memory())

    @property
    def bytes(self) -> int:
        """Of all its tensors."""
        return sum(batch.bytes for batch in {id(batch): batch for batch in (*self.batches, self.filler)}.values())


class StepDataset(Dataset):
    """Item s is this rank's StepData of optimizer step s: its share of `batch_size` stream positions (data/deal.py).

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
        costs: Costs,
    ):
        self.mixture = mixture
        self.encode = encode
        self.pack = pack
        self.batch_size = batch_size
        self.budget_tokens = budget_tokens
        self.rank = rank
        self.world_size = world_size
        self.costs = costs

    def __getitem__(self, step: int) -> StepData:
        positions, dealt_by, unsized = self._share(step)
        results = [self._encode(step, position) for position in positions]
        encoded = [result for result in results if isinstance(result, Encoded)]
        bad = tuple(result for result in results if isinstance(result, BadRecord))
        lengths = [len(sequence) for sequence in encoded]
        costs = [self.costs.of(len(one), *(stop - start for start, stop in one.two_way_spans)) for one in encoded]
        passes = cut(lengths, costs, self.budget_tokens, alone=self.world_size == 1)
        batches = tuple(self.pack([encoded[i] for i in group]) for group in passes)
        filler = min(batches, key=lambda batch: batch.tokens) if batches else self._find_filler(step)
        return StepData(step, batches, filler, len(encoded), bad, dealt_by, unsized)

    def _share(self, step: int) -> tuple[list[int], int, tuple[str, ...]]:
        """The stream positions of this rank in a step; a checksum of what decided it; positions without a cost.

        Each group of ranks deals what would be theirs if every rank took every world-th position.
        """
        ranks = next(ranks for ranks in dealing_ranks(self.world_size) if self.rank in ranks)
        first = step * self.batch_size
        positions = [first + i for i in range(self.batch_size) if i % self.world_size in ranks]
        if len(ranks) == 1:
            return positions, 0, ()
        costs: list[float | None] = []
        unsized: list[str] = []
        for position in positions:
            try:
                costs.append(self.costs.predicted(self.mixture, position))
            except BadSample as error:  # whoever encodes it reports it
                costs.append(None)
                unsized.append(str(error))
        mine = deal(costs, len(ranks))[self.rank - ranks.start]
        return [positions[i] for i in mine], zlib.crc32(repr(costs).encode()), tuple(unsized)

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
            f"step {step + 1}: no usable sample in {FILLER_TRIES} stream positions from {start}; last: {result.message}"
        )


def load_steps(dataset: StepDataset, start: int, stop: int, workers: int, pin: bool = False) -> Iterator[StepData]:
    """StepData of steps start .. stop - 1, prepared ahead by `workers` processes (0: in this one).

    Workers are forked, so they share the sources' memory. Each uses one thread, leaves signals of the terminal to this
    process, and dies with it. An error of the dataset is raised here as it is without workers. Raises DatasetError if a
    worker is killed, if /dev/shm has no room for what the workers send, and after STEP_TIMEOUT_S without a step.
    `pin`: in pinned memory, from which copies to a GPU do not wait.
    """
    _raise_open_files_limit()
    others = multiprocessing.active_children()
    on_end_of_child = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(
        _ErrorsAsValues(dataset, workers),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_prepare_worker,
        collate_fn=_unchanged,
        pin_memory=pin,
        timeout=STEP_TIMEOUT_S if workers else 0,
        generator=torch.Generator(),  # the loader's seed must not advance the global generator
    )
    # A worker that is not ready yet would be ended by a signal, by one of its parent with status 0.
    with signals_wait() if workers else contextlib.nullcontext():
        items = iter(loader)
    # torch's handler raises wherever this process happens to be, be it in the middle of a collective.
    signal.signal(signal.SIGCHLD, on_end_of_child)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    atexit.register(_kill, processes)  # otherwise Python sends them SIGTERM, and waits
    return _received(items, processes, stop - start)


class _ErrorsAsValues(Dataset):
    """An item is that of the dataset, or its error: an exception would come back from torch inside another, as text."""

    def __init__(self, dataset: Dataset, workers: int):
        self.dataset = dataset
        self.workers = workers

    def __getitem__(self, index: int) -> StepData | Exception:
        try:
            data = self.dataset[index]
            if self.workers:
                check_shared_memory(data.bytes, self.workers)
            return data
        except Exception as error:  # of whatever kind: it is raised again where the item is received
            if get_worker_info() is not None:
                return _portable(error)
            return error


def check_shared_memory(sent_bytes: int, workers: int) -> None:
    """Raise DatasetError if /dev/shm has no room for what a worker sends, or is too small for all that wait there.

    Without room the kernel kills a worker, or torch drops what it sends. Each of `workers` prepares WAITING items.
    """
    if not SHARED_MEMORY.is_dir():
        return
    room = os.statvfs(SHARED_MEMORY)
    free, size, all_bytes = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize, sent_bytes * workers * WAITING
    if sent_bytes > free or all_bytes > size:
        raise DatasetError(
            f"a data worker has {sent_bytes / MIB:,.1f} MiB to send, {workers} workers with {WAITING} of them each "
            f"{all_bytes / MIB:,.0f} MiB, but /dev/shm has {size / MIB:,.0f} MiB ({free / MIB:,.0f} free): make it "
            "larger (docker run --shm-size or --ipc=host; Kubernetes: an emptyDir of medium Memory at /dev/shm), or "
            "lower data.workers, 0 at last"
        )


def _portable(error: Exception) -> Exception:
    """The error in a form that survives the way to another process."""
    if not isinstance(error, UserError | OSError | MemoryError):  # a bug: its traceback would be lost
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it does not survive: an argument of it, or its constructor
        kind = UserError if isinstance(error, UserError) else RuntimeError
        return kind(str(error) if kind is UserError else f"{type(error).__name__}: {error}")
    return error


def _received(items: Iterator[StepData | Exception], workers: list[BaseProcess], count: int) -> Iterator[StepData]:
    try:
        for left in range(count, -1, -1):
            item = _receive(items, workers, may_end=left == 0)
            if isinstance(item, Exception):
                raise item
            if item is not None:
                yield item
    finally:
        del items  # torch asks its workers to end
        _kill(workers)


def _receive(
    items: Iterator[StepData | Exception], workers: list[BaseProcess], may_end: bool
) -> StepData | Exception | None:
    """The next item; None at the end. A worker that dies while it sends would leave us waiting for the rest.

    `may_end`: all items are here, and workers end with status 0.
    """
    if not workers:
        return next(items, None)
    before = signal.signal(signal.SIGCHLD, lambda number, frame: _refuse_killed(workers, may_end))
    try:
        _refuse_killed(workers, may_end)
        return next(items, None)
    except (RuntimeError, OSError, EOFError) as error:  # torch saw it first, or tensors of a killed worker are gone
        time.sleep(WORKER_END_S)
        _refuse_killed(workers, may_end)
        if "timed out" in str(error):
            raise DatasetError(
                f"the data workers have sent nothing for {STEP_TIMEOUT_S} s: a file system that does not answer, or "
                "/dev/shm too small for what they send (docker run --shm-size or --ipc=host); "
                "data.workers=0 shows where it waits"
            ) from None
        raise
    finally:
        signal.signal(signal.SIGCHLD, before)


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _refuse_killed(workers: list[BaseProcess], may_end: bool) -> None:
    for worker in workers:
        if worker.exitcode is not None and not (may_end and worker.exitcode == 0):
            how = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else f"exit status {worker.exitcode}"
            raise DatasetError(
                f"a data worker (process {worker.pid}) was killed: {how}. Most often memory is used up, of the machine "
                "(SIGKILL) or of /dev/shm (SIGBUS; docker run --shm-size or --ipc=host): lower data.workers, 0 at last"
            )


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)
    begin_worker()
    sys.excepthook = functools.partial(_report_unless_reader_is_gone, sys.excepthook)


def _report_unless_reader_is_gone(
    report: Callable[..., object], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The excepthook of a worker, called by the thread that hands over tensors.

    A run that ends while it takes one says why in its own message; the worker's half of it would be a second one.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        report(kind, error, trace)


def _unchanged(item: StepData) -> StepData:
    return item


def _raise_open_files_limit() -> None:
    # Every tensor from a worker is an open file; a large batch has more of them than the usual limit of 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
