"""REFER: RefCOCO, RefCOCO+, RefCOCOg. `<root>/<name>/{instances.json, refs(unc).p}`, refs(umd).p or refs(google).p."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.referring import Ref, Referring, collect, sentences_of
from pixel_sail.data.sources.unpickle import load_plain_pickle

NAMES = ("refcoco", "refcoco+", "refcocog")
REF_FILES = (
    "refs(unc).p",
    "refs(umd).p",
    "refs(google).p",
)  # the first one there is read; UMD is RefCOCOg's usual split


def read_refer(root: Path, name: str, split: str) -> Referring:
    """Every ref of a split, grouped by image. Raises DatasetError; bad refs are listed in `.problems`."""
    folder = root / name
    path = next((folder / file for file in REF_FILES if (folder / file).is_file()), None)
    if path is None:
        raise DatasetError(f"no dataset {name} under {root}: expected {folder}/instances.json and one of {REF_FILES}")
    refs = load_plain_pickle(path)
    try:
        parsed = [Ref(r["ref_id"], r["image_id"], (r["ann_id"],), r["split"], sentences_of(r)) for r in refs]
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a list of REFER refs: {error}") from None
    return collect(parsed, path, root, name, split)
