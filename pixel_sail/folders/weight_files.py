"""Safetensors files of a folder: names, shapes and types from their headers, tensors one at a time, finite or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import INDEX, check_downloaded, read_settings

SINGLE = "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}  # fmt: skip
MAX_FILE_BYTES = 2**40  # of one weight file
MAX_LISTED = 20  # names shown of a long list

Shapes = dict[str, tuple[int, ...]]  # by the name of the weight


class WeightFiles:
    """The weights of a folder: names, shapes and dtypes from the headers of its files, tensors one at a time.

    The files: model.safetensors, else those that the index names, else all *.safetensors. Raises WeightsError for a
    missing or damaged file, a name that occurs twice, and quantized weights. `buffers`: integers are accepted too, as
    models of others keep them.
    """

    def __init__(self, folder: Path, buffers: bool = False):
        self.folder = folder
        self.shapes: Shapes = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._known = FLOATS | OTHERS if buffers else FLOATS
        self._files: dict[str, Path] = {}
        for file in _weight_files(folder):
            self._read_header(file)
        if not self.shapes:
            raise WeightsError(f"the *.safetensors of {folder} hold no weights; download them again")

    @property
    def paths(self) -> list[Path]:
        """The files that hold weights."""
        return list(dict.fromkeys(self._files.values()))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. Its file is opened for this tensor alone: pages of an open file count as memory."""
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name)

    def finite_tensor(self, name: str) -> Tensor:
        """As `tensor`. Raises WeightsError if a value is NaN or infinite."""
        tensor = self.tensor(name)
        check_finite({name: tensor}, self._files[name])
        return tensor

    def _read_header(self, file: Path) -> None:
        check_downloaded(file, MAX_FILE_BYTES)
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (safe_open returns no dict)
                    if name in self._files:
                        raise WeightsError(f"{name} is in {file} and in {self._files[name]}: keep one of them")
                    header = opened.get_slice(name)
                    if header.get_dtype() not in self._known:
                        raise WeightsError(f"{file}: {name} is {header.get_dtype()}; give unquantized weights")
                    self._files[name], self.dtypes[name] = file, self._known[header.get_dtype()]
                    self.shapes[name] = tuple(header.get_shape())
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


def _weight_files(folder: Path) -> Sequence[Path]:
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return _named_by_index(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder} needs at least one *.safetensors (and config.json and the tokenizer's files). If the checkpoint "
            "has *.bin files, load it once with the program that wrote it and save it as safetensors"
        )
    return files


def _named_by_index(folder: Path) -> list[Path]:
    weight_map = read_settings(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{folder / INDEX} has no weight_map, which says in which file each weight is")
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {""}
    wrong = sorted(name for name in names if not name.endswith(".safetensors") or PurePath(name).name != name)
    if wrong:
        raise WeightsError(
            f"{folder / INDEX} names {wrong[0]!r}: a file name that ends in .safetensors, without a folder, is expected"
        )
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing[:MAX_LISTED])}, which {INDEX} names: download them too")
    return [folder / name for name in sorted(names)]
