"""Runs of an ablation, each by the same tools as a user's: trained, scored, and never twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixel_sail.config import REPOSITORY
from pixel_sail.studies.ablation.plan import AblationConfig, Run

TAIL_LINES = 15  # of the log, in the message of a failed run


class RunFailed(RuntimeError):
    """A tool ended with an error; the message has the end of what it said."""


def finished_scores(run: Run, config: AblationConfig) -> dict[str, dict[str, Any]] | None:
    """The scores by benchmark, None while the run is not scored on all that the ablation asks for."""
    try:
        found = json.loads((run.folder / "scores.json").read_text())
    except FileNotFoundError:
        return None
    if found["max_images"] != config.max_images or not set(config.benchmarks) <= set(found["benchmarks"]):
        return None
    return {name: found["benchmarks"][name] for name in config.benchmarks}


def execute(run: Run, config: AblationConfig, wait: bool) -> bool:
    """Does what is not yet done of a run. False, at once, when another process works on it and `wait` is false.

    Raises ConfigError for a folder of another config, RunFailed when a tool fails.
    """
    with _alone(run.folder / "lock", wait) as lock:
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
    path = run.folder / "scores.json"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({"max_images": config.max_images, "benchmarks": scores}, indent=1) + "\n")
    temporary.replace(path)


def _fill_caches(config: Path, caches: dict[str, Path], run: Run, lock: int) -> None:
    """Expert features that are there already are not computed again; no two processes write one cache."""
    if not caches:
        return
    with contextlib.ExitStack() as stack:
        locks = []
        for cache in sorted(set(caches.values())):  # always in this order, so that no two processes wait for each other
            cache.parent.mkdir(parents=True, exist_ok=True)
            locks.append(stack.enter_context(_alone(cache.with_name(cache.name + ".lock"), wait=True)))
        names = [part for name in caches for part in ("--expert", name)]
        _call(["cache_expert.py", config, *names], run, lock, *locks)


def _call(tool: list[Any], run: Run, *locks: int) -> None:
    """One tool, to its end; what it says goes to log.txt."""
    command = [sys.executable, str(REPOSITORY / "tools" / tool[0]), *map(str, tool[1:])]
    log = run.folder / "log.txt"
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        # The tool holds the locks too: it goes on when this process is killed, and nobody else may touch the run.
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=locks)
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise RunFailed(f"{run.name}: tools/{tool[0]} ended with {done.returncode}; the end of {log}:\n{said}")


@contextlib.contextmanager
def _alone(path: Path, wait: bool) -> Iterator[int | None]:
    """A lock of this process and those that it hands the descriptor to; None when others have it and `wait` is false.

    The lock is the kernel's: it is gone with the last of these processes, however they end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
