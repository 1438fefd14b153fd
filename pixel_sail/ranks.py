"""An error of one rank is an error of all ranks: nobody waits in a collective for a rank that has given up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from pixel_sail.errors import UserError, message_of

Result = TypeVar("Result")


class RankFailed(UserError):
    """Another rank has failed. Rank 0 prints what it was; the rank itself prints only a traceback, if it is a bug."""

    on_all_ranks = True


def local_ranks() -> int:
    """How many ranks run on this machine, as launchers say: torchrun and accelerate, deepspeed; else all of them."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), 1))


def together(function: Callable[[], Result]) -> Result:
    """What `function` returns on this rank, when it has returned on every rank. All ranks must call it.

    If it fails somewhere, every rank raises: its own error, or RankFailed with that of the first rank that has one.
    """
    result, error = None, None
    try:
        result = function()
    except Exception as caught:  # of whatever kind: the other ranks must hear of it
        error = caught
    raise_together(error)
    return result


def raise_together(error: Exception | None) -> None:
    """Raise on every rank if any rank has an error, as `together` does. All ranks must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if error is not None:
            raise error
        return
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, None if error is None else _in_words(error))
    number = next((rank for rank, message in enumerate(messages) if message is not None), None)
    if number is None:
        return
    if error is not None:
        error.on_all_ranks = True
        raise error
    raise RankFailed(f"rank {number}: {messages[number]}" if number else messages[number])


def _in_words(error: Exception) -> str:
    kind = "" if isinstance(error, UserError | OSError | MemoryError) else f"{type(error).__name__}: "
    return f"{kind}{message_of(error)}"
