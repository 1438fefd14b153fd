"""The files of a model folder: whole, of the right kind, not larger than they can rightly be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pixel_sail import files
from pixel_sail.errors import WeightsError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"

MAX_CONFIG_BYTES = 16 * 2**20  # of a JSON file of settings; the index of a model of 1,000 files has less
MAX_VOCABULARY_BYTES = 512 * 2**20  # of a tokenizer's file; the largest published ones have 40 MB
MAX_DEPTH = 50  # of lists and dicts inside each other in a JSON file of settings; published ones have 6

# What transformers reads of a tokenizer. Without any of VOCABULARIES it silently makes a tokenizer that knows no word.
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_SETTINGS = (
    CONFIG,
    TOKENIZER_CONFIG,
    INDEX,
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)
_TEXTS = ("merges.txt", "chat_template.jinja")
_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html")

check_regular = partial(files.check_regular, error=WeightsError)


def check_folder(folder: Path) -> None:
    """Raise WeightsError for a folder that is not there, or a settings or tokenizer file in it that cannot be used.

    Weights are looked at by WeightFiles. Says on the console that code in the folder is not run, if it names some.
    """
    if not folder.is_dir():
        raise WeightsError(f"no folder {folder}: a folder with config.json, *.safetensors and a tokenizer is expected")
    for name in _SETTINGS:
        if _exists(folder / name):
            _check_code(folder / name, read_settings(folder / name))
    for name in (*VOCABULARIES, *_TEXTS):
        if _exists(folder / name):
            check_downloaded(folder / name, MAX_VOCABULARY_BYTES)
            if name.endswith(".json"):
                _object(folder / name)
    if _exists(folder / "adapter_config.json"):  # transformers would load the model that it names, from anywhere
        raise WeightsError(
            f"{folder / 'adapter_config.json'}: this is an adapter, not a model. Merge it into its model with the "
            "program that wrote it, and give the merged folder"
        )


def check_downloaded(path: Path, max_bytes: int = files.MAX_BYTES) -> int:
    """The size of a file in bytes. Raises WeightsError if it is no regular file, empty, or not the file itself."""
    size = check_regular(path, max_bytes)
    try:
        with path.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    if not size:
        raise WeightsError(f"{path} is empty: the download was broken off; download it again")
    if start.startswith(_LFS):
        raise WeightsError(f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` in its folder")
    if start.lstrip().lower().startswith(_PAGES):
        raise WeightsError(f"{path} is a web page, not the file itself: download it again, from the file's own address")
    return size


def read_settings(path: Path) -> dict[str, Any]:
    """The values of a JSON file of a model folder. Raises WeightsError for anything but an object of sane values."""
    check_downloaded(path, MAX_CONFIG_BYTES)
    values = _object(path)
    for key, value, depth in walk(values):
        if depth > MAX_DEPTH:
            raise WeightsError(f"{path}: {key[:80]} is nested {depth} deep; at most {MAX_DEPTH} are read")
        if isinstance(value, float) and value != value:
            raise WeightsError(f"{path}: {key} is NaN, which is no value of a model")
    return values


def walk(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """(dotted key, value, depth) of every value inside `value`, not deeper than one below MAX_DEPTH."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        dotted = f"{key}.{name}" if key else str(name)
        yield dotted, inner, depth + 1
        if depth <= MAX_DEPTH:
            yield from walk(inner, dotted, depth + 1)


def _object(path: Path) -> dict[str, Any]:
    values = files.read_json(path, error=WeightsError)
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must be a JSON object {{...}}, it is a {type(values).__name__}")
    return values


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a link to nowhere is a file that is missing


def _check_code(path: Path, values: dict[str, Any]) -> None:
    """Folders may name Python files of their own for transformers to run. Ours never do, and nothing runs them."""
    if values.get("auto_map"):
        print(f"note: {path} names code of its own (auto_map); it is not run", file=sys.stderr)
