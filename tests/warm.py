"""Processes for tools, forked from a process that has imported everything already.

Each is a real process (its own memory, ranks, exit status, kill -9) without the ten seconds that importing torch and
DeepSpeed and the launcher take. The imports of a tool and the launchers are tested where train/test_launchers.py and
test_end_to_end.py start them as a user does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import LAUNCHER_KEYS, REPOSITORY, free_port

TIMEOUT_S = 400
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["deepspeed", "pixel_sail.bench.plan", "pixel_sail.train.loop", "pixel_sail.serve.predictor",
     "pixel_sail.evaluate.runner"]
)  # fmt: skip


@dataclass(frozen=True)
class Started:
    """The ranks of one command, and the file that takes what they print."""

    ranks: list[BaseProcess]
    log: Path

    def kill(self) -> None:
        for process in self.ranks:
            process.kill()

    def finish(self) -> tuple[int, str]:
        """(the first exit status that is not 0, or 0; everything that was printed). Kills what runs too long."""
        try:
            for process in self.ranks:
                process.join(TIMEOUT_S)
        finally:
            self.kill()  # a run that hangs must not go on beside the next test
        for process in self.ranks:
            process.join()
        output = self.log.read_text()
        self.log.unlink()
        return next((process.exitcode for process in self.ranks if process.exitcode), 0), output


def start_tool(*command: object, processes: int = 1) -> Started:
    """Starts "tools/x.py" and its arguments in the repository; several processes meet as under a launcher."""
    descriptor, log = tempfile.mkstemp()
    os.close(descriptor)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(processes):
        environment = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        ranks.append(_CONTEXT.Process(target=_run, args=(log, list(map(str, command)), environment)))
        ranks[-1].start()
    return Started(ranks, Path(log))


def run_tool(*command: object, processes: int = 1) -> tuple[int, str]:
    """(exit status, everything that the tool printed)."""
    return start_tool(*command, processes=processes).finish()


def _run(log: str, command: list[str], environment: dict[str, str]) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for key in LAUNCHER_KEYS:
        os.environ.pop(key, None)
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
