"""Worker processes: forked, deaf to the signals that their parent handles, and never outliving it.

The results come back through a pipe, so that nothing depends on the size of /dev/shm.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pixel_sail.errors import UserError
from pixel_sail.interrupts import SIGNALS

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # items per worker that are handed out before the first of them is back
MAX_WORKERS = 256  # more than this is a slip of the hand: every worker is a process


class WorkerDied(UserError):
    """A worker process has ended without a result."""


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = AHEAD) -> Iterator[R]:
    """function(item) of each item, in the order of the items, computed ahead by `workers` processes.

    0 workers: in this process. What the function raises is raised here as it is in one process, that of the first
    item first. Raises WorkerDied if a worker is killed. The workers have ended when the iterator has, also by an error,
    by a signal, or by `close`; if this process is killed they end by themselves.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (function,))
    processes: list[BaseProcess] = []
    try:
        yield from _handed_out(pool, iter(items), workers * ahead, processes)
    except BrokenProcessPool:
        code = _exit_code(processes)
        _kill(processes)
        raise WorkerDied(_how_one_ended(code)) from None
    except BaseException:
        _kill(processes)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """The first thing that a worker process does.

    A signal to the whole process group is handled by the parent, which then ends its workers. A worker whose parent was
    killed ends, so that it does not write while the command is repeated.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Signals that come inside are handled afterwards: a worker that is being started would handle them too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _handed_out(
    pool: ProcessPoolExecutor, items: Iterator[Any], at_once: int, processes: list[BaseProcess]
) -> Iterator[Any]:
    """The results. `processes` becomes the list of the workers, which the first item starts."""
    before = set(multiprocessing.active_children())
    with signals_wait():
        futures = deque(pool.submit(_call, item) for item in itertools.islice(items, 1))
        processes += set(multiprocessing.active_children()) - before
    futures += [pool.submit(_call, item) for item in itertools.islice(items, at_once - 1)]
    while futures:
        result = futures.popleft().result()
        futures += [pool.submit(_call, item) for item in itertools.islice(items, 1)]
        yield pickle.loads(result)


_function: Callable[[Any], Any] | None = None  # of a worker process


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    begin_worker()
    _function = function


def _call(item: Any) -> bytes:
    # Pickled here: the pool would move tensors through shared memory.
    return pickle.dumps(_function(item), pickle.HIGHEST_PROTOCOL)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _exit_code(processes: Iterable[BaseProcess]) -> int:
    """Of the worker that has ended. The pool's own thread asks at the same time, and one of the two gets no answer."""
    for _ in range(100):
        if codes := [process.exitcode for process in processes if process.exitcode]:  # 0: one that the pool has ended
            return codes[0]
        time.sleep(0.01)
    return -signal.SIGKILL


def _how_one_ended(code: int) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return (
        f"a worker process {how}: most likely the memory of this machine is used up, or somebody ended it. Use fewer "
        "workers, then repeat the command"
    )
