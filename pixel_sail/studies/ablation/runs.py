"""Train and score the runs of an ablation with the tools that users call. No run is done twice."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixel_sail import durable
from pixel_sail.config import REPOSITORY
from pixel_sail.errors import FileError, UserError
from pixel_sail.files import read_json, read_text
from pixel_sail.interrupts import Stopped
from pixel_sail.studies.ablation.plan import AblationConfig, Run
from pixel_sail.studies.tool_process import run_tool
from pixel_sail.writable import writing_into

TAIL_LINES = 15  # of the log, shown when a run fails


class RunFailed(UserError):
    """A tool failed; the message has the end of its output."""


def finished_scores(run: Run, config: AblationConfig) -> dict[str, dict[str, Any]] | None:
    """The scores by benchmark; None until the run is scored on all benchmarks of the ablation.

    Raises FileError for a damaged scores.json.
    """
    path = run.folder / "scores.json"
    if not os.path.lexists(path):
        return None
    scores = read_json(path)
    if not isinstance(scores, dict) or "max_images" not in scores or not _are_scores(scores.get("benchmarks")):
        raise FileError(f"{path} is damaged: it has no scores. Delete it, and the next call scores the run again")
    if scores["max_images"] != config.max_images or not set(config.benchmarks) <= set(scores["benchmarks"]):
        return None
    return {name: scores["benchmarks"][name] for name in config.benchmarks}


def _are_scores(benchmarks: Any) -> bool:
    """Whether it is benchmark -> name -> score; the scores that a table may show are finite numbers, or None."""
    if not isinstance(benchmarks, dict) or not all(isinstance(scores, dict) for scores in benchmarks.values()):
        return False
    numbers = [value for scores in benchmarks.values() for value in scores.values() if isinstance(value, float)]
    return all(math.isfinite(value) for value in numbers)


def execute(run: Run, config: AblationConfig, wait: bool) -> bool:
    """Do the remaining work of a run. Returns False at once if another process works on it and `wait` is false.

    Raises ConfigError for a folder of another config, RunFailed if a tool fails, Stopped with its last line when a
    signal has ended it.
    """
    with writing_into(run.folder), _locked(run.folder / "lock", wait) as lock:
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
    metrics = read_json(out / "metrics.json")
    scores = metrics.get("benchmarks") if isinstance(metrics, dict) else None
    if not _are_scores(scores) or not set(config.benchmarks) <= set(scores):
        raise RunFailed(f"{run.name}: {out / 'metrics.json'} does not have all scores; see {run.folder / 'log.txt'}")
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
        try:
            status = run_tool(command, file, locks)
        except Stopped as stopped:
            last = _tail(log, 1).removeprefix("stopped").lstrip(": ").removesuffix("; the same command goes on")
            raise Stopped(stopped.number, f"{run.name}, tools/{tool[0]}: {last}") from None
    if status:
        raise RunFailed(f"{run.name}: tools/{tool[0]} ended with {status}; the end of {log}:\n{_tail(log, TAIL_LINES)}")


def _tail(log: Path, lines: int) -> str:
    return "\n".join(read_text(log, fallback="utf-8").splitlines()[-lines:])


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
