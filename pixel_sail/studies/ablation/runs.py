"""Train and score the runs of an ablation with the tools that users call. No run is done twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixel_sail import durable
from pixel_sail.config import REPOSITORY
from pixel_sail.errors import UserError
from pixel_sail.studies.ablation.plan import AblationConfig, Run

TAIL_LINES = 15  # of the log, shown when a run fails


class RunFailed(UserError):
    """A tool failed; the message has the end of its output."""


def finished_scores(run: Run, config: AblationConfig) -> dict[str, dict[str, Any]] | None:
    """The scores by benchmark; None until the run is scored on all benchmarks of the ablation."""
    try:
        scores = json.loads((run.folder / "scores.json").read_text())
    except FileNotFoundError:
        return None
    if scores["max_images"] != config.max_images or not set(config.benchmarks) <= set(scores["benchmarks"]):
        return None
    return {name: scores["benchmarks"][name] for name in config.benchmarks}


def execute(run: Run, config: AblationConfig, wait: bool) -> bool:
    """Do the remaining work of a run. Returns False at once if another process works on it and `wait` is false.

    Raises ConfigError for a folder of another config, RunFailed if a tool fails.
    """
    with _locked(run.folder / "lock", wait) as lock:
        if lock is None:
            return False
        run.check_same()
        if finished_scores(run, config) is not None:
            return True
        path = run.write_config()
        _fill_caches(path, {e.name: e.cache for e in run.config.experts if e.cache is not None}, run, lock)
        export = run.config.run.dir / "export"
        if not export.exists():
            _call(["train.py", path], run, lock)
        _score(export, run, config, lock)
    return True


def _score(export: Path, run: Run, config: AblationConfig, lock: int) -> None:
    out = run.folder / "scores"
    names = [part for name in config.benchmarks for part in ("--benchmark", name)]
    limit = [] if config.max_images is None else ["--max-images", config.max_images]
    root = run.config.data.root
    _call(["test.py", export, *names, "--data-root", root, "--out", out, *limit], run, lock)
    scores = json.loads((out / "metrics.json").read_text())["benchmarks"]
    durable.write_json(run.folder / "scores.json", {"max_images": config.max_images, "benchmarks": scores})


def _fill_caches(config: Path, caches: dict[str, Path], run: Run, lock: int) -> None:
    """Compute the expert features that are not cached yet. No two processes write to the same cache."""
    if not caches:
        return
    with contextlib.ExitStack() as stack:
        locks = []
        for cache in sorted(set(caches.values())):  # in this order everywhere, so that no two processes deadlock
            cache.parent.mkdir(parents=True, exist_ok=True)
            locks.append(stack.enter_context(_locked(cache.with_name(cache.name + ".lock"), wait=True)))
        names = [part for name in caches for part in ("--expert", name)]
        _call(["cache_expert.py", config, *names], run, lock, *locks)


def _call(tool: list[Any], run: Run, *locks: int) -> None:
    """Run one tool to its end. Its output goes to log.txt."""
    command = [sys.executable, str(REPOSITORY / "tools" / tool[0]), *map(str, tool[1:])]
    log = run.folder / "log.txt"
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        # The tool inherits the locks: if this process is killed, the tool continues and the run stays locked.
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=locks)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise RunFailed(f"{run.name}: tools/{tool[0]} ended with {done.returncode}; the end of {log}:\n{tail}")


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[int | None]:
    """Lock a file and yield its descriptor; None if another process has the lock and `wait` is false.

    Processes that inherit the descriptor hold the lock too. The kernel releases it when the last of them ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
