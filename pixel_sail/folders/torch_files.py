"""Files of torch.save, read so that nothing in them runs: a zip with a pickle of tensors and plain values in it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pixel_sail.errors import WeightsError
from pixel_sail.files import check_regular

MAX_FILE_BYTES = 2**44  # 16 TiB, of one file
# How files begin that torch.save wrote before version 1.6 (2020): a pickle of this number comes first.
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# A class or function; or one that stands for another, with the name of that in the file.
Harmless = Any | tuple[Any, str]


def read_torch_file(
    file: Path,
    harmless: Sequence[Harmless] = (),
    map_location: Any = "cpu",
    mmap: bool = True,
    error: type[WeightsError] = WeightsError,
) -> Any:
    """The contents. `mmap`: tensors are read from the file where they are used; on the CPU alone.

    `harmless`: what may be made of the file beside tensors and plain values. Raises `error` for what is no such file,
    is damaged, or would run code.
    """
    check_zip(file, error)
    try:
        with torch.serialization.safe_globals(list(harmless)):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as problem:  # on damaged bytes the unpickler raises whatever the pickle leads to
        raise error(f"{file} {_reason(problem)}") from None


def check_zip(file: Path, error: type[WeightsError] = WeightsError) -> None:
    """Raise `error` for what is no zip whose parts are stored as they are: packed ones could claim any size."""
    size = check_regular(file, MAX_FILE_BYTES, error)
    try:
        with file.open("rb") as opened:
            is_old = opened.read(len(_OLD_FORMAT)) == _OLD_FORMAT
        if not is_old:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as problem:
        raise error(f"{file} is damaged or not complete: {problem}") from None
    if is_old:
        raise error(
            f"{file} has the format that torch.save wrote before version 1.6, which cannot be read piece by piece; "
            "load it with the program that wrote it, and save it again"
        )
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise error(f"{file} was not written by torch.save: its parts are packed, or overlap")


def _reason(error: Exception) -> str:
    """In our words: those of torch advise to load the file without protection."""
    text = str(error)
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return f"asks for {match[1]}, which could run code; only tensors and plain values are read. Nothing was run"
    if "weights_only" in text or "Weights only" in text:
        return "holds more than tensors and plain values, which could run code. Nothing was run"
    return f"is damaged: {type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"
