"""The files of a model folder: whole, of the right kind, not larger than they can rightly be."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pixel_sail import files
from pixel_sail.errors import WeightsError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"

MAX_CONFIG_BYTES = 16 * 2**20  # of a JSON file of settings; the index of a model of 1,000 files has less
MAX_VOCABULARY_BYTES = 512 * 2**20  # of a tokenizer's file; the largest published ones have 40 MB
MAX_DEPTH = 50  # of lists and dicts inside each other in a JSON file of settings; published ones have 6
MAX_GROWTH = 1000  # of a text by a tokenizer's replacements

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
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
CONFIG_FILES = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG)
TOKENIZER_FILES = (
    CONFIG,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "merges.txt",
    *VOCABULARIES,
)
PROCESSOR_FILES = (
    *TOKENIZER_FILES,
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_LARGE = (*VOCABULARIES, "merges.txt")
_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html")

check_regular = partial(files.check_regular, error=WeightsError)


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Raise WeightsError for a folder that is not there, or one of the files `names` in it that cannot be used.

    A file may be missing. Says on the console that code in the folder is not run, if a file names some.
    """
    if not folder.is_dir():
        raise WeightsError(f"no folder {folder}: a folder with config.json, *.safetensors and a tokenizer is expected")
    for path in (folder / name for name in names):
        if not path.exists() and not path.is_symlink():  # a link to nowhere is a file that is missing
            continue
        check_downloaded(path, MAX_VOCABULARY_BYTES if path.name in _LARGE else MAX_CONFIG_BYTES)
        if path.name == ADAPTER_CONFIG:  # transformers would load the model that it names, from anywhere
            raise WeightsError(
                f"{path}: this is an adapter, not a model. Merge it into its model with the program that wrote it, and "
                "give the merged folder"
            )
        if path.name in _LARGE and path.suffix == ".json":
            _check_growth(path, _object(path))
        elif path.suffix == ".json":
            settings = read_settings(path)
            if settings.get("auto_map") and settings.get("model_type") != "pixel_sail":  # ours is what runs anyway
                _note_code(path)


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


def _check_growth(path: Path, tokenizer: dict[str, Any]) -> None:
    """Raise WeightsError for replacements, one after the other, that would make a text many times longer."""
    for part in ("normalizer", "decoder"):
        growth = 1
        for _, step, _ in [("", tokenizer.get(part), 0), *walk(tokenizer.get(part))]:
            content = step.get("content") if isinstance(step, dict) else None
            if isinstance(content, str):
                pattern = step.get("pattern")
                replaced = pattern.get("String") if isinstance(pattern, dict) else None
                known = len(replaced) if isinstance(replaced, str) else 0  # an expression may match nothing at all
                growth *= max(1, -(-len(content) // known) if known else len(content) + 1)
        if growth > MAX_GROWTH:
            raise WeightsError(
                f"{path}: the replacements of its {part} make a text more than {MAX_GROWTH} times longer; no tokenizer "
                "of a model does"
            )


@functools.cache
def _note_code(path: Path) -> None:
    """Once for each file: others' folders may name Python files of their own for transformers to run."""
    print(f"note: {path} names code of its own (auto_map); it is not run", file=sys.stderr)
