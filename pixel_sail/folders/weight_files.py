"""The weights of a folder: names, shapes and types from the headers of its files, tensors one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import check_downloaded
from pixel_sail.folders.listing import CHECKPOINT, MAX_LISTED, SAFE, weight_files
from pixel_sail.folders.pickled_weights import read_pickled

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}  # fmt: skip
MAX_FILE_BYTES = 2**40  # of one weight file

Shapes = dict[str, tuple[int, ...]]  # by the name of the weight


class WeightFiles:
    """The weights of a folder: names, shapes and dtypes from the headers of its files, tensors one at a time.

    Which files: `weight_files` (listing.py). Raises WeightsError for a missing or damaged file, a name that occurs
    twice, and quantized weights. `buffers`: integers are accepted too, as models of others keep them. `pickled`: *.bin
    and *.pth are read, too, and `source` may be such a file; `folder` is then the folder that it is in.
    """

    def __init__(self, source: Path, buffers: bool = False, pickled: bool = False):
        self.folder = folder_of(source)
        self.shapes: Shapes = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._known = FLOATS | OTHERS if buffers else FLOATS
        self._files: dict[str, Path] = {}
        self._stored: dict[str, str] = {}  # the name in the file, where it is another
        for file in weight_files(source, pickled):
            self._read_header(file)
        if not self.shapes:
            raise WeightsError(f"the weight files of {source} hold no weights; download them again")

    @property
    def paths(self) -> list[Path]:
        """The files that hold weights."""
        return list(dict.fromkeys(self._files.values()))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. Its file is opened for this tensor alone: pages of an open file count as memory."""
        file, stored = self._files[name], self._stored.get(name, name)
        if file.suffix != SAFE:
            return read_pickled(file)[stored]
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(stored)

    def finite_tensor(self, name: str) -> Tensor:
        """As `tensor`. Raises WeightsError if a value is NaN or infinite."""
        tensor = self.tensor(name)
        check_finite({name: tensor}, self._files[name])
        return tensor

    def strip(self, prefix: str) -> None:
        """Call the weights whose names begin with `prefix` by the rest of their names. WeightsError if one is taken."""
        for name in [name for name in self.shapes if name.startswith(prefix)]:
            rest = name.removeprefix(prefix)
            if rest in self.shapes:
                raise WeightsError(f"{self.folder} has both {name} and {rest}: keep one of them")
            for by_name in (self.shapes, self.dtypes, self._files):
                by_name[rest] = by_name.pop(name)
            self._stored[rest] = name

    def drop_copies(self, tied: Mapping[str, str]) -> None:
        """Forget tied weights that some programs write twice. `tied`: name -> the weight that it shares.

        Raises WeightsError if the two differ: only one of them would be used.
        """
        for copy, original in tied.items():
            if copy not in self.shapes or original not in self.shapes:
                continue
            if not torch.equal(self.tensor(copy), self.tensor(original)):
                raise WeightsError(
                    f"{self.folder}: {copy} and {original} differ, but config.json ties them (tie_word_embeddings)"
                )
            del self.shapes[copy], self.dtypes[copy], self._files[copy]

    def _read_header(self, file: Path) -> None:
        check_downloaded(file, MAX_FILE_BYTES)
        known = {str(dtype): dtype for dtype in self._known.values()} | self._known
        for name, dtype, shape in _header(file):
            if name in self._files:
                raise WeightsError(f"{name} is in {file} and in {self._files[name]}: keep one of them")
            if dtype not in known:
                raise WeightsError(f"{file}: {name} is {dtype}; give unquantized weights")
            self._files[name], self.dtypes[name], self.shapes[name] = file, known[dtype], shape


def folder_of(source: Path) -> Path:
    """The folder of a model: `source`, or where it is if it is a file of weights or a checkpoint *.pth."""
    return source.parent if source.is_file() or source.suffix == CHECKPOINT else source


def _header(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype as it is written in the file, shape) of each weight; no value is read."""
    if file.suffix != SAFE:
        for name, tensor in read_pickled(file).items():
            yield name, str(tensor.dtype), tuple(tensor.shape)
        return
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open returns no dict)
                header = opened.get_slice(name)
                yield name, header.get_dtype(), tuple(header.get_shape())
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged or not complete: {error}; download it again") from None


def check_shapes(expected: Shapes, actual: Shapes, folder: Path) -> None:
    """Raise WeightsError that lists the weights in `folder` that are missing, unexpected or of the wrong shape."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"unexpected {name}" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"wrong shape {name}: file {actual[name]}, model {expected[name]}"
        for name in sorted(expected.keys() & actual.keys())
        if actual[name] != expected[name]
    ]
    refuse_problems(problems, folder)


def refuse_problems(problems: Sequence[str], folder: Path) -> None:
    """Raise WeightsError with the first of `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise WeightsError(f"the weights in {folder} do not fit together: {'; '.join(problems[:MAX_LISTED])}{more}")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass; nothing of the tensor's size is allocated."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # NaN is the least and the largest of all


def check_finite(tensors: dict[str, Tensor], where: Path | str) -> None:
    """Raise WeightsError that lists the tensors with NaN or infinite values. `where` they come from."""
    wrong = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if wrong:
        more = f" and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
        raise WeightsError(
            f"{where}: NaN or infinite values in {', '.join(wrong[:MAX_LISTED])}{more}. Such a model answers nothing: "
            "its training diverged, or the file is damaged; take an earlier checkpoint, or download it again"
        )
