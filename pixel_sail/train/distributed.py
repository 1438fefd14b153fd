"""Processes and their collectives. One process without a launcher is a world of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pixel_sail.config import ConfigError

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(minutes=60)  # rank 0 exports and scores while the others wait at a barrier


def start() -> None:
    """Join the process group that the launcher describes in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Without a launcher, create a world of one. NCCL on GPUs, gloo on CPUs.
    """
    alone = "MASTER_PORT" not in os.environ and world_size() == 1
    if alone:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    _use_cpu_quietly()
    import deepspeed

    if device().type == "cuda":
        torch.cuda.set_device(local_rank())
    elif "OMP_NUM_THREADS" not in os.environ:  # the processes of one machine share its cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // _local_world_size()))
    # DeepSpeed's shared-memory all-reduce for CPUs is compiled at start: it needs a compiler and half a minute, and a
    # process killed meanwhile leaves a lock on which every later start hangs. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device().type == "cuda" else "gloo"
    if alone and not dist.is_initialized():  # a store in memory needs no port, which another process could take
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        timeout=COLLECTIVE_TIMEOUT,
        verbose=False,
    )


def stop() -> None:
    """Leave the process group; otherwise NCCL warns at exit."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # torch's function keeps DeepSpeed's groups


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The device of this process: its GPU, or the CPU (also with DS_ACCELERATOR=cpu on a GPU machine)."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


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
    """What `function` returns on rank 0, on every rank; its ConfigError is raised on every rank."""
    result, error = None, None
    if rank() == 0:
        try:
            result = function()
        except ConfigError as caught:
            error = caught
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def _local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def _use_cpu_quietly() -> None:
    # DeepSpeed warns at import if it must detect by itself that there is no accelerator.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
