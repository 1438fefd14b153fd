"""Weight files on disk: read names, shapes and tensors, compare them with a model, write shards."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixel_sail.data.pack import consecutive_groups
from pixel_sail.durable import replaced_folder
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail

SHARD_BYTES = 2_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_LISTED = 20  # names shown of a long list

Shapes = dict[str, tuple[int, ...]]  # by the name of the weight


class WeightFiles:
    """The weights of a folder: names, shapes and dtypes from the headers of its files, tensors one at a time.

    The files: model.safetensors, else those that the index names, else all *.safetensors. Raises FileNotFoundError for
    a missing file, ValueError for a damaged file, a name that occurs twice, or quantized weights.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes: Shapes = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        for file in _weight_files(folder):
            self._read_header(file)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. Its file is opened for this tensor alone: pages of an open file count as memory."""
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name)

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (safe_open returns no dict)
                    if name in self._files:
                        raise ValueError(f"{name} is in {file} and in {self._files[name]}: keep one of them")
                    header = opened.get_slice(name)
                    if header.get_dtype() not in DTYPES:
                        raise ValueError(f"{file}: {name} is {header.get_dtype()}; give unquantized weights")
                    self._files[name], self.dtypes[name] = file, DTYPES[header.get_dtype()]
                    self.shapes[name] = tuple(header.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or not complete: {error}") from None


def expected_shapes(config: PixelSailConfig) -> Shapes:
    """Names and shapes of a model's weights, computed on the meta device. Tied weights appear once."""
    with torch.device("meta"):
        model = PixelSail(config)
    tied = model.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def check_shapes(expected: Shapes, actual: Shapes, folder: Path) -> None:
    """Raise ValueError that lists the weights in `folder` that are missing, unexpected or of the wrong shape."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"unexpected {name}" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"wrong shape {name}: file {actual[name]}, model {expected[name]}"
        for name in sorted(expected.keys() & actual.keys())
        if actual[name] != expected[name]
    ]
    refuse_problems(problems, folder)


def refuse_problems(problems: Sequence[str], folder: Path) -> None:
    """Raise ValueError with the first of `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise ValueError(f"the weights in {folder} do not fit together: {'; '.join(problems[:MAX_LISTED])}{more}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` when the block ends well. ValueError if `out` is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; give another --out")
    with replaced_folder(out) as partial:
        yield partial


def write_shards(
    folder: Path,
    shapes: Shapes,
    dtypes: dict[str, torch.dtype],
    tensor: Callable[[str], Tensor],
    shard_bytes: int,
) -> None:
    """Write model.safetensors, or several files of at most `shard_bytes` (a larger tensor goes alone) and their index.

    `tensor(name)` is called once for each weight. No more than one shard is held in memory.
    """
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = split_by_size(sizes, shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: tensor(name).to(dtypes[name]).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def split_by_size(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Split names, in order, into runs whose sizes sum to at most `limit`. A larger item is a run of its own."""
    names = list(sizes)
    return [[names[i] for i in group] for group in consecutive_groups(list(sizes.values()), limit)]


def peak_bytes() -> int:
    """The largest resident set size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _weight_files(folder: Path) -> Sequence[Path]:
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing[:MAX_LISTED])}, which {INDEX} names: download them too"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} needs at least one *.safetensors (and config.json and the tokenizer's files). If the checkpoint "
            "has *.bin files, load it once with the program that wrote it and save it as safetensors"
        )
    return files
