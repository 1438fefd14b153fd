"""The way of a step's data to a GPU, as far as a CPU can show it; tests/null_gpu counts the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator

import packed
import pytest
import torch

from pixel_sail.data import loader
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.loader import StepData, check_shared_memory, load_steps
from pixel_sail.train.copies import ahead, in_turn
from pixel_sail.types import Batch


class FakeCopies:
    """Notes what happens in which order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def start(self, batch: Batch) -> Batch:
        self.events.append(f"start {batch.keys[0]}")
        return batch

    def finish(self, batch: Batch) -> None:
        self.events.append(f"finish {batch.keys[0]}")


def batch_of(number: int) -> Batch:
    return packed.pack([packed.only_text(number, 8)])


def step_of(number: int) -> StepData:
    batches = tuple(batch_of(10 * number + i) for i in range(2))
    return StepData(number, batches, batches[0], 2, ())


def test_a_micro_batch_is_copied_while_the_one_before_it_runs() -> None:
    copies = FakeCopies()
    for batch in in_turn([batch_of(number) for number in range(3)], copies):
        copies.events.append(f"run {batch.keys[0]}")
    assert copies.events == [
        *("start text0", "finish text0", "start text1", "run text0"),
        *("finish text1", "start text2", "run text1"),
        *("finish text2", "run text2"),
    ]


def test_a_step_begins_while_the_step_before_it_runs_and_an_error_waits_for_its_turn() -> None:
    def steps() -> Iterator[StepData]:
        yield step_of(0)
        yield step_of(1)
        raise DatasetError("no third step")

    copies, received = FakeCopies(), []
    with pytest.raises(DatasetError, match="no third step"):
        for data in ahead(steps(), copies):
            received.append(data.step)
            assert copies.events[-1] == "start text10"
    assert received == [0, 1]
    assert copies.events == ["start text0", "start text10"]


def test_the_bytes_of_a_step_count_a_filler_that_is_one_of_its_batches_once() -> None:
    batch = packed.pack([packed.with_image(1, 4, 4)])
    tensors: list[torch.Tensor] = []
    batch.map(lambda tensor: tensors.append(tensor) or tensor)
    expected = sum(tensor.nbytes for tensor in tensors)
    assert expected > 16 * 3 * 16**2
    assert StepData(0, (batch,), batch, 1, ()).bytes == expected
    assert StepData(0, (batch,), packed.pack([packed.with_image(1, 4, 4)]), 1, ()).bytes == 2 * expected


def test_too_little_shared_memory_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared_memory(2**20, workers=2)
    with pytest.raises(DatasetError, match=r"1,048,576.0 MiB to send.*docker run --shm-size.*data.workers"):
        check_shared_memory(2**40, workers=1)
    monkeypatch.setattr(loader.os, "statvfs", lambda _: room(blocks=64 * 256, free=64 * 256))  # docker's 64 MiB
    check_shared_memory(15 * 2**20, workers=2)
    with pytest.raises(DatasetError, match=r"2 workers with 2 of them each 68 MiB, but /dev/shm has 64 MiB"):
        check_shared_memory(17 * 2**20, workers=2)
    monkeypatch.setattr(loader.os, "statvfs", lambda _: room(blocks=64 * 256, free=256))
    with pytest.raises(DatasetError, match=r"1 free"):
        check_shared_memory(15 * 2**20, workers=2)


def room(blocks: int, free: int) -> object:
    """A file system with blocks of 4 KiB."""
    return type("statvfs", (), {"f_frsize": 4096, "f_blocks": blocks, "f_bavail": free})


class Sleeping(torch.utils.data.Dataset):
    def __getitem__(self, step: int) -> StepData:
        time.sleep(60)
        return step_of(step)


def test_workers_that_send_nothing_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "STEP_TIMEOUT_S", 1)
    with pytest.raises(DatasetError, match="have sent nothing for 1 s.*--shm-size.*data.workers=0"):
        next(load_steps(Sleeping(), 0, 2, workers=1))
