"""Processes for tools, forked from a process that has imported everything already.

Each is a real process (its own memory, exit status, kill -9) without the seconds that importing torch and DeepSpeed
takes. The imports of a tool itself, and the launcher, are tested where `tiny_run.run_cli` starts one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import LAUNCHER_KEYS, REPOSITORY, free_port

TIMEOUT_S = 400
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["deepspeed", "pixel_sail.train.loop", "pixel_sail.serve.predictor", "pixel_sail.evaluate.runner"]
)


def start_tool(log: Path, *command: str | Path, **environment: str) -> BaseProcess:
    """Starts "tools/x.py" with its arguments in the repository; everything that it prints goes to the end of `log`."""
    words = [str(word) for word in command]
    process = _CONTEXT.Process(target=_run, args=(log, words, environment))
    process.start()
    return process


def run_tool(log: Path, *command: str | Path) -> tuple[int, str]:
    """(exit status, everything that the tool printed)."""
    return _finish(log, [start_tool(log, *command)])


def run_ranks(log: Path, *command: str | Path, processes: int = 2) -> tuple[int, str]:
    """As many processes as a launcher would start, which find each other: (the largest exit status, what was printed)."""
    port, ranks = str(free_port()), range(processes)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    return _finish(
        log, [start_tool(log, *command, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in ranks]
    )


def _finish(log: Path, started: list[BaseProcess]) -> tuple[int, str]:
    try:
        for process in started:
            process.join(TIMEOUT_S)
        return max(abs(process.exitcode) if process.exitcode is not None else 1 for process in started), log.read_text()
    finally:
        for process in started:
            process.kill()  # a run that hangs must not go on beside the next test


def _run(log: Path, command: list[str], environment: dict[str, str]) -> None:
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for key in LAUNCHER_KEYS:
        os.environ.pop(key, None)
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
