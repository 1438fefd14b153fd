"""gRefCOCO: expressions for one object, several objects or none.

As in the authors' code (github.com/henghuiding/ReLA), annotations of crowds are not part of a target: an expression for
crowds alone has none.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from pixel_sail.config import DataConfig
from pixel_sail.data.files import read_json
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
from pixel_sail.data.templates import Templates
from pixel_sail.types import BadSample

NAME = "grefcoco"
FILE = ExpectedFile("grefcoco/grefs(unc).json")
INSTANCES = ExpectedFile("grefcoco/instances.json")


def open_grefer(root: Path, split: str, data: DataConfig) -> ReferringSource:
    """Raises DatasetError; refs that cannot be used are listed in `.problems`."""
    return ReferringSource(read_grefer(root, split), Templates.of(data), data.expressions_per_image)


def read_grefer(root: Path, split: str) -> Referring:
    """Every ref of a split, grouped by image; several objects are united. Raises DatasetError; bad refs are listed."""
    path, instances_path = FILE.find(root, split), INSTANCES.path(root, split)

    def read() -> Referring:
        refs = read_refs(read_json(path), path, "gRefCOCO refs", _ref)
        return collect(refs, path, instances_path, root, NAME, split, crowds=False)

    return read_referring(NAME, split, root, (instances_path, path), read)


def _ref(ref: Any, where: str) -> Ref:
    ref_id, image_id = (id_member(ref, key, where) for key in ("ref_id", "image_id"))
    if not all(type(number) in (int, str) for number in member(ref, "ann_id", list, where)):
        raise BadSample(f"{where}: its 'ann_id' is {reprlib.repr(ref['ann_id'])}; expected a list of numbers")
    texts = member(ref, "split", str, where), sentences_of(ref, where)
    return Ref(ref_id, image_id, _targets(ref), *texts, _contradiction(ref))


def _targets(ref: dict[str, Any]) -> tuple[int, ...]:
    return () if ref["ann_id"] == [-1] else tuple(ref["ann_id"])


def _contradiction(ref: dict[str, Any]) -> str:
    """Where `no_target` and the annotations do not agree; nothing says which of them is right."""
    if ref.get("no_target") and _targets(ref):
        return f"it says no_target and has the annotations {ref['ann_id']}"
    if not ref.get("no_target", True) and not _targets(ref):
        return f"it says no_target: {ref['no_target']} and has no annotation (ann_id {ref['ann_id']})"
    return ""


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val", "testA", "testB"),
        files=(FILE, INSTANCES),
        sample="an image",
        turn="an expression; one mask for one object or several, no mask for none",
        open=open_grefer,
        image_folders=COCO_2014_FOLDERS,
    ),
)
