"""A checkpoint of N processes as M processes would have saved it: ZeRO's shards are cut anew, in memory.

DeepSpeed's universal checkpoints do the same by way of a second copy on disk, which is made and read with pickles that
could run code. Here each process reads from the shards what becomes its own, as engine_files.py reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixel_sail.weights.engine_files import SHARD_KEYS, present_files, read_engine_file
from pixel_sail.weights.run_folder import ENGINE, DamagedCheckpoint, TrainState


@dataclass(frozen=True)
class Layout:
    """How a process keeps its shard."""

    rank: int
    world_size: int
    sizes: tuple[int, ...]  # values in each of its flat vectors
    groups: tuple[int, ...]  # of the optimizer, of each vector; at stage 3 a group can have several


class Recut:
    """The files of a checkpoint of ZeRO stage 1, 2 or 3 that passed `check_files`, as this process would save them.

    The methods raise DamagedCheckpoint if the shards do not hold the weights that they name.
    """

    def __init__(self, checkpoint: Path, saved: TrainState, layout: Layout):
        names = present_files(checkpoint, saved)
        self._weight_files, self._optimizer_files = ([checkpoint / ENGINE / name for name in part] for part in names)
        self._stage = saved.zero_stage
        self._layout = layout

    @property
    def weights_file(self) -> str:
        """The path of a file with weights that is there."""
        return str(self._weight_files[0])

    def weights(self) -> dict[str, Any]:
        """The file with the weights; at stage 3 with its parts of those that are not trained, and no others."""
        values = read_engine_file(self._weight_files[0]) | {"dp_world_size": self._layout.world_size}
        if self._stage == 3 and values["frozen_param_shapes"]:
            shards = [read_engine_file(file, mmap=True)["frozen_param_fragments"] for file in self._weight_files]
            values["frozen_param_fragments"] = {
                name: self._share([shard[name] for shard in shards], shape.numel(), name)
                for name, shape in values["frozen_param_shapes"].items()
            }
        return values

    def optimizer(self) -> dict[str, Any]:
        """The file with this process's share of the float32 weights and of the optimizer's state."""
        first, *_ = files = [read_engine_file(file, mmap=True) for file in self._optimizer_files]
        shards = [file["optimizer_state_dict"] for file in files]
        weights_key, state_key = SHARD_KEYS[self._stage]
        base = shards[0][state_key]
        states = [[state for _, state in sorted(shard[state_key]["state"].items())] for shard in shards]
        entry = states[0][0]
        keys = [key for key, value in entry.items() if isinstance(value, Tensor) and value.ndim > 0]
        moments = {key: self._vectors([[vector[key] for vector in state] for state in states]) for key in keys}
        # The number of steps, which check_files has compared. A copy for each: torch counts it up in place.
        rest = {key: value for key, value in entry.items() if key not in keys}
        numbers = range(len(self._layout.sizes))
        base |= {
            "state": {n: deepcopy(rest) | {key: vectors[n] for key, vectors in moments.items()} for n in numbers},
            "param_groups": [
                group | {"params": [n for n in numbers if self._layout.groups[n] == number]}
                for number, group in enumerate(base["param_groups"])
            ],
        }
        weights = self._vectors([shard[weights_key] for shard in shards])
        return first | {"optimizer_state_dict": shards[0] | {weights_key: weights, state_key: base}}

    def _vectors(self, shards: list[list[Tensor]]) -> list[Tensor]:
        """The flat vectors of this process, from those of each process that saved.

        Up to stage 2 the weights of a group lie one after the other in one vector, of which each process has a part. At
        stage 3 each process has a part of each weight, and its parts lie one after the other.
        """
        shapes = read_engine_file(self._weight_files[0], mmap=True)["param_shapes"]
        numels = [{name: shape.numel() for name, shape in group.items()} for group in shapes]
        if self._stage < 3:
            groups = zip(zip(*shards, strict=True), numels, self._layout.sizes, strict=True)
            return [
                cut(parts, sum(group.values()), self._layout.rank * size, size, f"group {number}")
                for number, (parts, group, size) in enumerate(groups)
            ]
        weights = [(name, numel) for group in numels for name, numel in group.items()]
        sizes = [ceil(numel / len(shards)) for _, numel in weights]
        parts = zip(*(split(vectors, sizes) for vectors in shards), strict=True)
        shares = [self._share(part, numel, name) for part, (name, numel) in zip(parts, weights, strict=True)]
        return list(torch.cat(shares).split(self._layout.sizes))

    def _share(self, parts: Sequence[Tensor], numel: int, name: str) -> Tensor:
        """Of one weight at stage 3."""
        size = ceil(numel / self._layout.world_size)
        return cut(parts, numel, self._layout.rank * size, size, name)


def split(vectors: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Views of the vectors, one after the other, of these sizes; none reaches from one vector into the next.

    Raises DamagedCheckpoint if the vectors cannot be divided so.
    """
    parts, others = [], iter(vectors)
    rest = next(others)
    for size in sizes:
        if len(rest) == 0:
            rest = next(others, rest)
        parts.append(rest[:size])
        rest = rest[size:]
    values = sum(map(len, vectors))
    if list(map(len, parts)) != sizes or values != sum(sizes):
        raise DamagedCheckpoint(f"a shard has {values} values, but its weights need {sum(sizes)}")
    return parts


def cut(parts: Sequence[Tensor], numel: int, start: int, size: int, name: str) -> Tensor:
    """Values start .. start + size - 1 of the parts one after the other, of which the first `numel` are no padding.

    Zeros take the place of padding. Raises DamagedCheckpoint if there are fewer values than `numel`.
    """
    if sum(map(len, parts)) < numel:
        raise DamagedCheckpoint(f"the shards have {sum(map(len, parts))} values of {name}, which has {numel}")
    values, offset = parts[0].new_zeros(size), 0
    for part in parts:
        first, last = max(offset, start), min(offset + len(part), start + size, numel)
        if first < last:
            values[first - start : last - start] = part[first - offset : last - offset]
        offset += len(part)
    return values
