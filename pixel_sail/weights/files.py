"""Weight files on disk: compare them with a model, write them in shards."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pixel_sail.data.pack import consecutive_groups
from pixel_sail.durable import replaced_folder, rust_errors
from pixel_sail.errors import FileError, WeightsError
from pixel_sail.folders.checksums import write_sums
from pixel_sail.folders.files import CONFIG, INDEX
from pixel_sail.folders.listing import SINGLE
from pixel_sail.folders.load import on_meta
from pixel_sail.folders.weight_files import Shapes, WeightFiles, check_shapes, is_finite
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail, expected_shapes
from pixel_sail.writable import check_writable

SHARD_BYTES = 2_000_000_000


def check_weights(config: PixelSailConfig, files: WeightFiles) -> None:
    """Raise WeightsError if the names and shapes of `files` are not those of the model that `config` describes."""
    check_shapes(model_shapes(config, files.folder), files.shapes, files.folder)


def model_shapes(config: PixelSailConfig, folder: Path) -> Shapes:
    """Names and shapes of the weights of a model; nothing is allocated. WeightsError names `folder`, its source."""
    return expected_shapes(on_meta(lambda: PixelSail(config), folder / CONFIG))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` with checksums when the block ends well. FileError as `check_new`."""
    check_new(out)
    with replaced_folder(out) as partial:
        yield partial
        write_sums(partial)


def check_new(out: Path, needed_bytes: int = 0) -> None:
    """Before the work: raise FileError if `out` is not empty, cannot be made, or would not fit on its disk."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} is not empty; give another --out")
    check_writable(out, needed_bytes)


def write_shards(
    folder: Path,
    shapes: Shapes,
    dtypes: dict[str, torch.dtype],
    tensor: Callable[[str], Tensor],
    shard_bytes: int,
) -> None:
    """Write model.safetensors, or several files of at most `shard_bytes` (a larger tensor goes alone) and their index.

    `tensor(name)` is called once for each weight. No more than one shard is held in memory. Raises WeightsError for a
    weight that is NaN or infinite, or becomes so in its dtype.
    """
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = split_by_size(sizes, shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _written(name, tensor(name), dtypes[name]) for name in names}
        with rust_errors(folder):
            save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def _written(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not is_finite(tensor):
        raise WeightsError(f"{name} has NaN or infinite values: a model with it answers nothing, so it is not written")
    stored = tensor.to(dtype).contiguous()
    if stored is not tensor and not is_finite(stored):
        raise WeightsError(f"{name} has values that {dtype} cannot hold; give another --dtype (bf16, fp32)")
    return stored


def split_by_size(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Split names, in order, into runs whose sizes sum to at most `limit`. A larger item is a run of its own."""
    names = list(sizes)
    return [[names[i] for i in group] for group in consecutive_groups(list(sizes.values()), limit)]


def peak_bytes() -> int:
    """The largest resident set size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
