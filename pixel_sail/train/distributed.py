"""Processes and their collectives. One process without a launcher is a world of one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pixel_sail.errors import UserError
from pixel_sail.interrupts import SIGNALS
from pixel_sail.ranks import local_ranks, together
from pixel_sail.train.launcher import watch_launcher
from pixel_sail.train.peers import Peers, connect

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(minutes=60)  # rank 0 exports and scores while the others wait at a barrier
MEETING_TIMEOUT = timedelta(minutes=10)  # for all processes to start
LEAVE_S = 20.0  # to leave the process group after an error
NEWS_S = 3.0  # from the failure of a collective to the news that a process is gone

_peers: Peers | None = None


def start() -> None:
    """Join the process group that the launcher describes in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Without a launcher, create a world of one. NCCL on GPUs, gloo on CPUs. Raises UserError if the ranks do not meet.
    """
    global _peers
    alone = "MASTER_PORT" not in os.environ and world_size() == 1
    if alone:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    _use_cpu_quietly()
    import deepspeed

    if device().type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank()} of this machine (LOCAL_RANK) has no GPU: {torch.cuda.device_count()} are there"
            )
        torch.cuda.set_device(local_rank())
    elif "OMP_NUM_THREADS" not in os.environ:  # the processes of one machine share its cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks()))
    # DeepSpeed's shared-memory all-reduce for CPUs is compiled at start: it needs a compiler and half a minute, and a
    # process killed meanwhile leaves a lock on which every later start hangs. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device().type == "cuda" else "gloo"
    if not dist.is_initialized():
        watch_launcher()
        # alone: a store in memory needs no port, which another process could take
        store = dist.HashStore() if alone else _meet()
        store.set_timeout(COLLECTIVE_TIMEOUT)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank(),
            world_size=world_size(),
            timeout=COLLECTIVE_TIMEOUT,
            device_id=bound_device(),
        )
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        timeout=COLLECTIVE_TIMEOUT,
        verbose=False,
    )
    if _peers is None and world_size() > 1:
        _peers = connect(rank(), world_size(), broadcast_object)


def stop() -> None:
    """Leave the process group; otherwise NCCL warns at exit. In a `finally`: if an error is on its way, the others end.

    What then hangs, because the others do not leave together with this process, is given up after a while.
    """
    global _peers
    error = sys.exc_info()[1]
    if _peers is not None:
        _peers.leave(failed=error is not None)
        _peers = None
        if error is not None:
            end = threading.Timer(LEAVE_S, os._exit, [getattr(error, "status", 1)])
            end.daemon = True
            end.start()
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # torch's function keeps DeepSpeed's groups


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The whole work of a tool of several processes: starts them if there are several, and stops at the end.

    A collective that fails because another process is gone raises RuntimeError: the process ends then, without a
    traceback. peers.py says who is gone.
    """
    try:
        if world_size() > 1:
            start()
        yield
    except RuntimeError:
        end_if_a_rank_is_gone()
        raise
    finally:
        stop()


def end_if_a_rank_is_gone() -> None:
    """For a RuntimeError that may come from a collective: end the process if another one is gone."""
    if _peers is not None:
        _peers.end_if_lost(NEWS_S)


def _meet() -> dist.Store:
    # torch waits below Python, where a handler of ours would not run before the ten minutes are over
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=MEETING_TIMEOUT))
    except (dist.DistError, ValueError, OSError) as error:  # ValueError: a variable is not set, or no number
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason, advice = str(error).splitlines()[0], ""
        if "EADDRINUSE" in reason:
            advice = "; another run has that port: choose one, as in `deepspeed --master_port 29501 ...`"
        raise UserError(
            f"{world_size()} processes (WORLD_SIZE) must meet at {place} (MASTER_ADDR:MASTER_PORT), but rank {rank()} "
            f"cannot: {reason}{advice}"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return store


def rank() -> int:
    return _number("RANK", 0)


def local_rank() -> int:
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def device() -> torch.device:
    """The device of this process: its GPU, or the CPU (also with DS_ACCELERATOR=cpu on a GPU machine)."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def bound_device() -> torch.device | None:
    """What torch is told to be the GPU of this rank, if there are several; None elsewhere.

    NCCL connects the ranks at once then; barriers and object collectives need not guess the GPU; the groups that
    DeepSpeed makes are split from ours. Not for one rank, where that has failed (DeepSpeed's issue 8248).
    """
    return device() if world_size() > 1 and device().type == "cuda" else None


def all_gather_numbers(values: list[float]) -> list[list[float]]:
    """The same list of float64 from every rank, in rank order, on every rank."""
    if world_size() == 1:
        return [values]
    local = torch.tensor(values, dtype=torch.float64, device=device())
    by_rank = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(by_rank, local)
    return torch.stack(by_rank).tolist()


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over the ranks, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_gather_objects(value: Any) -> list[Any]:
    """The object of every rank, in rank order, on every rank. Uses pickle: only for small objects and rare calls."""
    if world_size() == 1:
        return [value]
    by_rank: list[Any] = [None] * world_size()
    dist.all_gather_object(by_rank, value)
    return by_rank


def broadcast_object(value: Any) -> Any:
    """Rank 0's object on every rank."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_0(function: Callable[[], Result]) -> Result:
    """What `function` returns on rank 0, on every rank; its error is raised on every rank (ranks.together)."""
    return broadcast_object(together(lambda: function() if rank() == 0 else None))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise UserError(f"the environment says {name}={text}, which is no number; launchers set it")
    return int(text or default)


def _use_cpu_quietly() -> None:
    # DeepSpeed warns at import if it must detect by itself that there is no accelerator.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
