"""Runs a tool as a process of its own, within limits of time and memory, from the folder of a case."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import LAUNCHER_KEYS, REPOSITORY, free_port

TIMEOUT_S = 45.0  # of one command; undamaged it takes 1 to 5 s
MEMORY_BYTES = 3 * 2**30  # that a command may take beyond what its imports take
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["deepspeed", "timm", "matplotlib.pyplot", "pixel_sail.bench.plan", "pixel_sail.train.loop",
     "pixel_sail.serve.predictor", "pixel_sail.evaluate.runner", "pixel_sail.weights.publish",
     "pixel_sail.weights.convert.language_model", "pixel_sail.scenes.expert_training",
     "pixel_sail.studies.ablation.table", "pixel_sail.data.check", "pixel_sail.data.write_shards"]
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """`status`: exit status, negative for a signal, None if the time was up. `peak_bytes`: taken beyond the imports."""

    status: int | None
    output: str
    peak_bytes: int
    seconds: float


@dataclass
class Running:
    """The ranks of one command. `log` and `peak` take what they print and their largest memory."""

    ranks: list[BaseProcess]
    log: Path
    started: float

    def wait_until_ready(self, timeout_s: float = TIMEOUT_S) -> None:
        """Until every rank has begun to run its tool."""
        ready = [Path(f"{self.log}.{number}.ready") for number in range(len(self.ranks))]
        deadline = time.monotonic() + timeout_s
        while not all(path.exists() for path in ready) and self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """A signal to every rank, not to the processes that the ranks have started."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(rank.pid, number)

    def is_alive(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)

    def finish(self, timeout_s: float = TIMEOUT_S) -> Finished:
        """Waits for the end, or ends what runs too long; the workers of a dead rank are ended too."""
        deadline, late = time.monotonic() + timeout_s, False
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
            late = late or rank.is_alive()
        seconds = time.monotonic() - self.started
        for rank in self.ranks:
            _end_group(rank.pid)
            rank.join()
        peaks = [Path(f"{self.log}.{number}") for number in range(len(self.ranks))]
        ready = [Path(f"{path}.ready") for path in peaks]
        peak = max((int(path.read_text() or 0) for path in peaks if path.exists()), default=0)
        output = self.log.read_text(errors="replace")
        for path in (self.log, *peaks, *ready):
            path.unlink(missing_ok=True)
        status = next((rank.exitcode for rank in self.ranks if rank.exitcode), 0)
        return Finished(None if late else status, output, peak, seconds)


def start(command: Sequence[object], folder: Path, processes: int = 1, limited: bool = True) -> Running:
    """Starts "tools/x.py" and its arguments in `folder`; several processes meet as under a launcher."""
    descriptor, log = tempfile.mkstemp(prefix="attack_")
    os.close(descriptor)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    ranks = []
    for number in range(processes):
        place = meeting | {"RANK": str(number), "LOCAL_RANK": str(number)} if processes > 1 else {}
        arguments = (log, number, list(map(str, command)), str(folder), place, limited)
        ranks.append(_CONTEXT.Process(target=_run, args=arguments))
        ranks[-1].start()
    return Running(ranks, Path(log), time.monotonic())


def run(command: Sequence[object], folder: Path, processes: int = 1, timeout_s: float = TIMEOUT_S) -> Finished:
    return start(command, folder, processes).finish(timeout_s)


def _run(log: str, number: int, command: list[str], folder: str, place: Mapping[str, str], limited: bool) -> None:
    os.setpgid(0, 0)  # so that workers can be ended with it
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for key in LAUNCHER_KEYS:
        os.environ.pop(key, None)
    os.environ.update(place)
    os.chdir(folder)
    if limited:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a forkserver ignores it
    sys.argv = [str(REPOSITORY / command[0]), *command[1:]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(f"{log}.{number}.ready").touch()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        after = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        Path(f"{log}.{number}").write_text(str(max(0, max(after) - before) * 1024))


def _end_group(number: int | None) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
