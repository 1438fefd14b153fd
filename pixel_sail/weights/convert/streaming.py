"""Convert released weights one tensor at a time: a plan that is checked as a whole, then shards written one by one.

A family of checkpoints (solo.py, sail.py, ...) makes a Conversion, which says how each of our weights is derived from
tensors of the files. `check` compares the plan with the headers of the files before any tensor is read. `write` then
never holds more than one shard of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixel_sail.folders.weight_files import Shapes, WeightFiles, refuse_problems
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.files import SHARD_BYTES, check_new, model_shapes, new_folder, write_shards


@dataclass(frozen=True)
class DerivedWeight:
    """One of our weights: `derive` computes it from the tensors `sources` of the files, in that order.

    A new weight has no sources. `derive` also runs on meta tensors, which have a shape and no values: so all shapes are
    checked before any tensor is read.
    """

    sources: tuple[str, ...]
    derive: Callable[..., Tensor]


@dataclass(frozen=True)
class Conversion:
    """A model to be written; `derived` has every one of its weights by our name."""

    files: WeightFiles
    config: PixelSailConfig
    tokenizer: PreTrainedTokenizerBase
    derived: dict[str, DerivedWeight]

    def tensor(self, name: str) -> Tensor:
        weight = self.derived[name]
        return weight.derive(*(self.files.finite_tensor(source) for source in weight.sources))


def copied(names: dict[str, str]) -> dict[str, DerivedWeight]:
    """Weights that are copied unchanged; `names` maps our name to the name in the files."""
    return {ours: DerivedWeight((theirs,), lambda tensor: tensor) for ours, theirs in names.items()}


def check(conversion: Conversion) -> Shapes:
    """Return our names and shapes. Raise WeightsError that lists missing, unexpected, unread and mis-shaped weights."""
    files, derived = conversion.files, conversion.derived
    expected = model_shapes(conversion.config, files.folder)
    needed = [(name, source) for name, weight in derived.items() for source in weight.sources]
    absent = {name: source for name, source in needed if source not in files.shapes}
    problems = [f"missing {name}" for name in sorted(expected.keys() - derived.keys())]
    problems += [f"missing {source}, which becomes {name}" for name, source in sorted(absent.items())]
    problems += [f"unexpected {name}" for name in sorted(derived.keys() - expected.keys())]
    problems += [f"unexpected {key}" for key in sorted(files.shapes.keys() - {source for _, source in needed})]
    for name in sorted((expected.keys() & derived.keys()) - absent.keys()):
        shape = _derived_shape(derived[name], files)
        if shape != expected[name]:
            sources = " and ".join(derived[name].sources)
            problems.append(f"wrong shape {name}: file {shape}, model {expected[name]} (of {sources})")
    refuse_problems(problems, files.folder)
    return expected


def load(conversion: Conversion) -> PixelSail:
    """The model in memory, float32, in eval mode; for small models. Raises WeightsError as `check` does."""
    names = check(conversion)
    model = PixelSail(conversion.config)
    model.load_state_dict({name: conversion.tensor(name).float() for name in names}, strict=False)
    return model.eval()


def write(conversion: Conversion, out: Path, shard_bytes: int = SHARD_BYTES, dtype: torch.dtype | None = None) -> int:
    """Write a folder for PixelSail.from_pretrained and return its number of parameters. Raises WeightsError as `check`.

    With `dtype` None each weight keeps the dtype that it has in the files; a new weight gets the dtype of their largest
    tensor. `out` appears only when it is complete.
    """
    shapes, files = check(conversion), conversion.files
    largest = max(files.shapes, key=lambda name: torch.Size(files.shapes[name]).numel())
    dtypes = {name: dtype or files.dtypes[(*conversion.derived[name].sources, largest)[0]] for name in shapes}
    conversion.config.architectures = [PixelSail.__name__]
    conversion.config.dtype = dtype or files.dtypes[largest]
    check_new(out, sum(torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()))
    with new_folder(out) as folder:
        write_shards(folder, shapes, dtypes, conversion.tensor, shard_bytes)
        conversion.config.save_pretrained(folder)
        conversion.tokenizer.save_pretrained(folder)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _derived_shape(weight: DerivedWeight, files: WeightFiles) -> tuple[int, ...] | str:
    """The shape of the derived weight, or the shapes of its sources as text where they do not go together."""
    shapes = [files.shapes[source] for source in weight.sources]
    try:
        return tuple(weight.derive(*(torch.empty(shape, device="meta") for shape in shapes)).shape)
    except (RuntimeError, IndexError, ValueError):
        return ", ".join(map(str, shapes))
