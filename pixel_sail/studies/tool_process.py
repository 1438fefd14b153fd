"""A tool as a process of its own, which is stopped in order where its caller is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO, Any

from pixel_sail.interrupts import Stopped, finish_first

POLL_S = 0.5  # between two looks whether a signal has come


def run_tool(command: Sequence[str], output: IO[Any] | None = None, pass_fds: Sequence[int] = ()) -> int:
    """Run a command to its end and return its exit status. `output`: file of what it prints; None: as ours.

    It is in a process group of its own, so that Ctrl-C reaches it once, through us. A signal is passed on to it; when
    it has ended, Stopped is raised. A second Ctrl-C kills it and its processes.
    """
    stderr = None if output is None else subprocess.STDOUT
    with finish_first("the tool in hand") as stop:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=stderr, pass_fds=pass_fds, process_group=0
        )
        try:
            passed_on = False
            while (status := _status(process)) is None:
                if stop.number and not passed_on:
                    process.send_signal(stop.number)
                    passed_on = True
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if stop.number:
        raise Stopped(stop.number)
    return status


def _status(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None
