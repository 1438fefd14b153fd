"""REFER: the referring expressions of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import exists
from pixel_sail.data.sources.coco import COCO_2014_FOLDERS
from pixel_sail.data.sources.entries import id_member, member
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.referring import (
    Ref,
    Referring,
    ReferringSource,
    collect,
    read_referring,
    read_refs,
    sentences_of,
)
from pixel_sail.data.sources.unpickle import load_plain_pickle
from pixel_sail.data.templates import Templates

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
}
NAMES = tuple(SPLITS)
REF_FILES = ("refs(unc).p", "refs(umd).p", "refs(google).p")  # the first that exists is read; UMD is RefCOCOg's usual


def refer_files(name: str) -> tuple[ExpectedFile, ...]:
    """The masks and the expressions of a dataset."""
    first, *others = (f"{name}/{file}" for file in REF_FILES)
    return ExpectedFile(f"{name}/instances.json"), ExpectedFile(first, tuple(others))


def open_refer(name: str, root: Path, split: str, data: DataConfig) -> ReferringSource:
    """Raises DatasetError; refs that cannot be used are listed in `.problems`."""
    return ReferringSource(read_refer(root, name, split), Templates.of(data), data.expressions_per_image)


def read_refer(root: Path, name: str, split: str) -> Referring:
    """Every ref of a split, grouped by image. Raises DatasetError; bad refs are listed in `.problems`."""
    instances_path, path = (file.path(root, split) for file in refer_files(name))
    if not exists(path):
        raise DatasetError(f"no dataset {name} under {root}: expected {instances_path} and one of {REF_FILES}")

    def read() -> Referring:
        refs = read_refs(load_plain_pickle(path), path, "REFER refs", _ref)
        return collect(refs, path, instances_path, root, name, split)

    return read_referring(name, split, root, (instances_path, path), read)


def _ref(ref: Any, where: str) -> Ref:
    ref_id, image_id, annotation_id = (id_member(ref, key, where) for key in ("ref_id", "image_id", "ann_id"))
    return Ref(ref_id, image_id, (annotation_id,), member(ref, "split", str, where), sentences_of(ref, where))


RECORDS = tuple(
    SourceRecord(
        name=name,
        splits=SPLITS[name],
        files=refer_files(name),
        sample="an image",
        turn="an expression and the mask of its object",
        open=partial(open_refer, name),
        image_folders=COCO_2014_FOLDERS,
    )
    for name in NAMES
)
