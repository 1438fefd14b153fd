"""Micro-batches on their way to a GPU while it computes: each is copied on a stream of its own, ahead of its turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pixel_sail.data.loader import StepData
from pixel_sail.errors import UserError
from pixel_sail.types import Batch


class Copies:
    """Copies from pinned memory to `device`, a GPU. Nobody waits but the stream that computes, for its own batch.

    The memory of a copy is taken and given back in the order of the stream that computes, which therefore holds no more
    than the micro-batch that runs and the one that follows. A copy begins when the micro-batch before the one that runs
    is done: only then is the memory that it writes to free.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.arrived: dict[int, torch.cuda.Event] = {}  # by id of the batch on the GPU

    def start(self, batch: Batch) -> Batch:
        """The batch on the GPU. Its values are not there before `finish`."""
        if batch.input_ids.device == self.device:
            return batch
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        copied = batch.map(self._copy)
        self.arrived[id(copied)] = self.stream.record_event()
        return copied

    def finish(self, batch: Batch) -> None:
        """From here on the stream that computes may read what `start` returned."""
        torch.cuda.current_stream(self.device).wait_event(self.arrived.pop(id(batch)))

    def _copy(self, tensor: Tensor) -> Tensor:
        target = torch.empty_like(tensor, device=self.device, pin_memory=False)
        with torch.cuda.stream(self.stream):
            return target.copy_(tensor, non_blocking=True)


def in_turn(batches: Sequence[Batch], copies: Copies | None) -> Iterator[Batch]:
    """The same micro-batches on the GPU, each copied while the one before it runs. Without `copies` as they are."""
    if copies is None:
        yield from batches
        return
    following = copies.start(batches[0])
    for number, batch in enumerate(batches, 1):
        batch = following
        copies.finish(batch)
        if number < len(batches):
            following = copies.start(batches[number])
        yield batch


def ahead(steps: Iterator[StepData], copies: Copies | None) -> Iterator[StepData]:
    """The same steps; on a GPU, the first micro-batch of each is copied while the step before it runs.

    An error of a step is raised in its turn.
    """
    if copies is None:
        yield from steps
        return
    data, error = _next(steps, copies)
    while data is not None:
        following, error = _next(steps, copies)
        yield data
        data = following
    if error is not None:
        raise error


def _next(steps: Iterator[StepData], copies: Copies) -> tuple[StepData | None, Exception | None]:
    """The next step, or its error; neither at the end."""
    try:
        data = next(steps, None)
    except (UserError, OSError, MemoryError) as error:
        return None, error
    if data is None or not data.batches:
        return data, None
    return replace(data, batches=(copies.start(data.batches[0]), *data.batches[1:])), None
