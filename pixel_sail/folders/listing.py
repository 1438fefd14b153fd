"""Which files of a folder hold its weights, and whether all of them are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import INDEX, read_settings

SINGLE = "model.safetensors"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = f"{PICKLED}.index.json"
SAFE, PICKLE, CHECKPOINT = ".safetensors", ".bin", ".pth"  # the ends of names
MAX_LISTED = 20  # names shown of a long list
_GATHERED = "mp_rank_00_model_states.pt"  # DeepSpeed's file with all weights, at ZeRO 0 to 2
_NUMBERED = re.compile(r"(.+-)(\d{5})-of-(\d{5})(\.\w+)")


def weight_files(source: Path, pickled: bool) -> Sequence[Path]:
    """The files with the weights of a folder, or `source` itself if it is one.

    model.safetensors, else those that its index names, else all *.safetensors. With `pickled`, if there is none of
    them: pytorch_model.bin, those that its index names, all pytorch_model*.bin, or the only *.pth; a *.pth may be a
    folder of DeepSpeed. Raises WeightsError if there are none, or if some are missing.
    """
    if source.suffix == CHECKPOINT or source.is_file():
        return [_checkpoint(source)]
    if _there(source / SINGLE):
        return [source / SINGLE]
    if (source / INDEX).exists():
        return _named_by_index(source / INDEX, SAFE)
    safe = _numbered(sorted(source.glob(f"*{SAFE}")))
    if not safe and pickled:
        return _pickled(source)
    if not safe:
        raise WeightsError(
            f"{source} needs at least one *{SAFE} (and config.json and the tokenizer's files). *{PICKLE} and "
            f"*{CHECKPOINT} are read by tools/convert.py alone; for anything else load them once with the program that "
            "wrote them and save it as safetensors"
        )
    return safe


def _pickled(folder: Path) -> Sequence[Path]:
    if _there(folder / PICKLED):
        return [folder / PICKLED]
    if (folder / PICKLED_INDEX).exists():
        return _named_by_index(folder / PICKLED_INDEX, PICKLE)
    if shards := _numbered(sorted(folder.glob(f"pytorch_model*{PICKLE}"))):
        return shards
    checkpoints = sorted(folder.glob(f"*{CHECKPOINT}"))
    if len(checkpoints) > 1:
        names = ", ".join(path.name for path in checkpoints[:MAX_LISTED])
        raise WeightsError(f"{folder} has several checkpoints ({names}): give the file instead of the folder")
    if not checkpoints:
        raise WeightsError(
            f"{folder} has no weights: it needs at least one *{SAFE}, {PICKLED}, or a checkpoint *{CHECKPOINT} (and "
            "config.json and the tokenizer's files)"
        )
    return [_checkpoint(checkpoints[0])]


def _checkpoint(path: Path) -> Path:
    """A checkpoint, or the file in a folder of that name."""
    if not path.is_dir():
        return path
    if not (path / _GATHERED).exists():
        raise WeightsError(
            f"{path} is a folder without {_GATHERED}, in which DeepSpeed has the weights up to ZeRO 2. Of ZeRO 3 "
            "gather them with DeepSpeed's zero_to_fp32.py, and give the file that it writes"
        )
    return path / _GATHERED


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a link to nowhere is named when it is read


def _numbered(files: list[Path]) -> list[Path]:
    """`files`. Raises WeightsError if they are numbered, as model-00001-of-00003, and one number is missing."""
    parts = [match for file in files if (match := _NUMBERED.fullmatch(file.name))]
    for start, _, total, end in {(part[1], "", part[3], part[4]) for part in parts}:
        names = {f"{start}{number:05d}-of-{total}{end}" for number in range(1, int(total) + 1)}
        _refuse_missing(sorted(names - {file.name for file in files}), files[0].parent, "their names count")
    return files


def _named_by_index(index: Path, end: str) -> list[Path]:
    weight_map = read_settings(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} has no weight_map, which says in which file each weight is")
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {""}
    wrong = sorted(name for name in names if not name.endswith(end) or PurePath(name).name != name)
    if wrong:
        raise WeightsError(f"{index} names {wrong[0]!r}: a file name that ends in {end}, without a folder, is expected")
    missing = sorted(name for name in names if not (index.parent / name).exists())
    _refuse_missing(missing, index.parent, f"{index.name} names")
    return [index.parent / name for name in sorted(names)]


def _refuse_missing(names: Sequence[str], folder: Path, reason: str) -> None:
    if names:
        raise WeightsError(f"{folder} lacks {', '.join(names[:MAX_LISTED])}, which {reason}: download them too")
