"""Worker processes: the same results and errors as in one process; none hangs, none outlives its parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import fork

from pixel_sail.errors import FileError, UserError
from pixel_sail.workers import WorkerDied, in_order


def square(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number**2


def bad(number: int) -> int:
    if number >= 5:
        raise FileError(f"file {number} is damaged")
    return number


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_in_the_order_of_the_items(workers: int) -> None:
    assert list(in_order(square, range(40), workers)) == [number**2 for number in range(40)]
    endless = in_order(square, itertools.count(), workers)
    assert [next(endless) for _ in range(5)] == [0, 1, 4, 9, 16]
    endless.close()
    assert not multiprocessing.active_children()


def test_tensors_come_back() -> None:
    (first, second) = in_order(lambda item: item * torch.arange(3), [1, 2], workers=2)
    assert first.tolist() == [0, 1, 2] and second.tolist() == [0, 2, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_same_as_in_one_process(workers: int, capfd: pytest.CaptureFixture) -> None:
    results = in_order(bad, range(20), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"^file 5 is damaged$") as caught:
        next(results)
    assert type(caught.value) is FileError and not multiprocessing.active_children()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("end", "how"), [(lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL"),
                                          (lambda: os._exit(3), "ended with status 3")])  # fmt: skip
def test_a_killed_worker_is_a_message(end, how: str) -> None:
    with pytest.raises(WorkerDied, match=f"a worker process {how}: .*memory.*Use fewer workers"):
        list(in_order(lambda item: end() if item == 7 else item, range(20), workers=2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, number: int) -> None:
    """Also those that are in the middle of a long item."""

    def work(item: int) -> None:
        (tmp_path / f"{item}").touch()
        time.sleep(60)

    started = fork(lambda: list(in_order(work, range(8), workers=2)), tmp_path / "log")
    started.wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    if number == signal.SIGINT:  # of a terminal: all get it, and a launcher passes it on
        started.signal_all(number)
        started.signal_all(number)
    else:
        os.kill(started.process.pid, number)
    began = time.monotonic()
    status, printed = started.finish()
    assert time.monotonic() - began < 5
    assert status == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert printed == ("" if number == signal.SIGKILL else "stopped\n")
