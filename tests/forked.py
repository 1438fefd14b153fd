"""A tool in a process of its own, forked from the test: real signals, kill -9, limits; no time for imports."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

TIMEOUT_S = 120


@dataclass(frozen=True)
class Forked:
    """The first process of a session of its own, and the file that takes what it prints."""

    process: BaseProcess
    log: Path

    def signal_all(self, number: int) -> None:
        """As Ctrl-C in a terminal: to the process and its workers."""
        os.killpg(self.process.pid, number)

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_there():
            assert self.process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)

    def finish(self) -> tuple[int, str]:
        """(exit status, what was printed), once all processes of the session have ended. Fails where one hangs."""
        self.process.join(TIMEOUT_S)
        status, deadline = self.process.exitcode, time.monotonic() + 10
        while _is_there(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        left = _is_there(self.process.pid)
        if left or status is None:
            self.signal_all(signal.SIGKILL)
        assert status is not None, f"it hangs: {self.log.read_text()}"
        assert not left, f"a process has outlived it: {self.log.read_text()}"
        return status, self.log.read_text()


def fork(main: Callable[[], None], log: Path) -> Forked:
    """Starts `main` as the main of a tool."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(main, log))
    process.start()
    started = Forked(process, log)
    started.wait_for(log.exists)
    return started


def _run(main: Callable[[], None], log: Path) -> None:
    from pixel_sail.command import tool

    os.setsid()
    partial = log.with_suffix(".partial")
    with partial.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))  # not pytest's
    tool(lambda: (partial.rename(log), main()))()


def _is_there(session: int) -> bool:
    """Whether a process of it lives. One whose parent was killed is a zombie until init asks for its status."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == session and state != "Z":
                return True
    return False
