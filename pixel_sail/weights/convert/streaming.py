"""Released weights to ours, a tensor at a time: a plan that is checked as a whole, then files written one by one.

A family of checkpoints (solo.py, sail.py, ...) makes a Conversion: for each of our weights, which of the file's it is
made of and how. `check` compares the plan with the headers of the files, before anything is read; `write` then never
holds more than one shard of the result.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixel_sail.data.pack import consecutive_groups
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail

SHARD_BYTES = 2_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INDEX = "model.safetensors.index.json"
LISTED = 20  # names shown of each long list


class WeightFiles:
    """The weights of a folder: names, shapes and dtypes from the headers of its files, tensors one at a time.

    The files: model.safetensors, else those that the index names, else all *.safetensors. Raises FileNotFoundError when
    there are none or one is missing, ValueError for a damaged file, a name that comes twice, or quantized weights.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        for file in _files(folder):
            self._read_header(file)

    def tensor(self, name: str) -> Tensor:
        """Its values. The file is opened for this tensor alone: pages of a file that stays open count as memory."""
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name)

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no dict)
                    if name in self._files:
                        raise ValueError(f"{name} is in {file} and in {self._files[name]}: keep one of them")
                    header = opened.get_slice(name)
                    if header.get_dtype() not in DTYPES:
                        raise ValueError(f"{file}: {name} is {header.get_dtype()}; give unquantized weights")
                    self._files[name], self.dtypes[name] = file, DTYPES[header.get_dtype()]
                    self.shapes[name] = tuple(header.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or not complete: {error}") from None


@dataclass(frozen=True)
class Made:
    """One of our weights: `make` of the file's tensors `reads`, in that order; of none where it is new.

    `make` also runs on meta tensors, which have a shape and no values: so shapes are checked before anything is read.
    """

    reads: tuple[str, ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class Conversion:
    """A model that is to be made of `weights`: `made` has every one of its weights by our name."""

    weights: WeightFiles
    config: PixelSailConfig
    tokenizer: PreTrainedTokenizerBase
    made: dict[str, Made]

    def tensor(self, name: str) -> Tensor:
        made = self.made[name]
        return made.make(*(self.weights.tensor(key) for key in made.reads))


def copied(names: dict[str, str]) -> dict[str, Made]:
    """Our name -> the file's, taken as it is."""
    return {ours: Made((theirs,), lambda tensor: tensor) for ours, theirs in names.items()}


def check(conversion: Conversion) -> dict[str, tuple[int, ...]]:
    """Our names and shapes. Raises ValueError that lists what is missing, unexpected, unread or of the wrong shape."""
    weights, expected = conversion.weights, expected_shapes(conversion.config)
    needed = [(name, key) for name, made in conversion.made.items() for key in made.reads]
    absent = {name: key for name, key in needed if key not in weights.shapes}
    problems = [f"missing {name}" for name in sorted(expected.keys() - conversion.made.keys())]
    problems += [f"missing {key}, which becomes {name}" for name, key in sorted(absent.items())]
    problems += [f"unexpected {name}" for name in sorted(conversion.made.keys() - expected.keys())]
    problems += [f"unexpected {key}" for key in sorted(weights.shapes.keys() - {key for _, key in needed})]
    for name in sorted((expected.keys() & conversion.made.keys()) - absent.keys()):
        found = _made_shape(conversion, name)
        if found != expected[name]:
            keys = " and ".join(conversion.made[name].reads)
            problems.append(f"wrong shape {name}: file {found}, model {expected[name]} (of {keys})")
    _refuse(problems, weights.folder)
    return expected


def refuse_differences(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raises ValueError that lists what the weights of a finished model in `folder` lack or have otherwise."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"wrong shape {name}: file {found[name]}, model {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    _refuse(problems, folder)


def _refuse(problems: list[str], folder: Path) -> None:
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"the weights in {folder} do not fit together: {'; '.join(problems[:LISTED])}{more}")


def load(conversion: Conversion) -> PixelSail:
    """The model in memory, float32, eval mode: for small ones. Raises ValueError as `check` does."""
    names = check(conversion)
    model = PixelSail(conversion.config)
    model.load_state_dict({name: conversion.tensor(name).float() for name in names}, strict=False)
    return model.eval()


def write(conversion: Conversion, out: Path, shard_bytes: int = SHARD_BYTES, dtype: torch.dtype | None = None) -> int:
    """Writes the folder that PixelSail.from_pretrained takes; the number of its parameters. Errors as in `check`.

    `dtype` None: each weight keeps the one it has in the file, new ones get that of the file's largest. `out` appears
    only when it is whole.
    """
    shapes = check(conversion)
    given = conversion.weights
    largest = max(given.shapes, key=lambda key: torch.Size(given.shapes[key]).numel())
    dtypes = {name: dtype or given.dtypes[(*conversion.made[name].reads, largest)[0]] for name in shapes}
    conversion.config.architectures = [PixelSail.__name__]
    conversion.config.dtype = dtype or given.dtypes[largest]
    with partial_folder(out) as partial:
        write_shards(partial, shapes, dtypes, conversion.tensor, shard_bytes)
        conversion.config.save_pretrained(partial)
        conversion.tokenizer.save_pretrained(partial)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name when the block ends well. ValueError if `out` holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; give another --out")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shards(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    dtypes: dict[str, torch.dtype],
    tensor: Callable[[str], Tensor],
    shard_bytes: int,
) -> None:
    """model.safetensors, or several of at most `shard_bytes` (a larger tensor goes alone) and their index.

    `tensor(name)` is called once for each, and no more than one shard is held at a time.
    """
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = cut(sizes, shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        held = {name: tensor(name).to(dtypes[name]).contiguous() for name in names}
        save_file(held, folder / file, metadata={"format": "pt"})
        del held
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def cut(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Runs of names, in order, whose sizes sum to at most `limit`, or single ones."""
    names = list(sizes)
    return [[names[i] for i in group] for group in consecutive_groups(list(sizes.values()), limit)]


def expected_shapes(config: PixelSailConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights, without making it; tied ones once."""
    with torch.device("meta"):
        model = PixelSail(config)
    tied = model.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def peak_bytes() -> int:
    """The most memory that this process has held so far (resident set)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _made_shape(conversion: Conversion, name: str) -> tuple[int, ...] | str:
    made = conversion.made[name]
    shapes = [conversion.weights.shapes[key] for key in made.reads]
    try:
        return tuple(made.make(*(torch.empty(shape, device="meta") for shape in shapes)).shape)
    except (RuntimeError, IndexError, ValueError):  # shapes that do not go together at all
        return ", ".join(map(str, shapes))


def _files(folder: Path) -> Sequence[Path]:
    index = folder / INDEX
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing[:LISTED])}, which {INDEX} names: download them too"
            )
        return [folder / name for name in named]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} needs at least one *.safetensors (and config.json and the tokenizer's files). A checkpoint in "
            "*.bin files: load it once with the program it belongs to and save it as safetensors"
        )
    return files
