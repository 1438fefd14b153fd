"""What a data worker prints when the run that it works for goes away."""

from __future__ import annotations

import multiprocessing
import socket
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd

import pytest

from pixel_sail.data.loader import _prepare_worker


def offer(connection: Connection) -> None:
    """As a worker does that sends a tensor, until it is killed."""
    _prepare_worker(0)
    connection.send(DupFd(1)._id[0])  # where the one who takes it asks for it
    connection.recv()
    sys.excepthook(ValueError, ValueError("a bug of that thread"), None)
    connection.send(None)
    time.sleep(60)


def test_a_run_that_ends_while_it_takes_a_tensor_is_no_error_of_the_worker(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # torch's puts ranks in front, of earlier tests too
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=offer, args=(theirs,))
    worker.start()
    try:
        address = ours.recv()
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(address)
        time.sleep(0.5)
        assert capfd.readouterr().err == ""
        ours.send(None)
        ours.recv()
    finally:
        worker.kill()
        worker.join()
    assert capfd.readouterr().err == "ValueError: a bug of that thread\n"
