"""gRefCOCO: expressions for one, several or no object. `<root>/grefcoco/{instances.json, grefs(unc).json}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.coco import read_json
from pixel_sail.data.sources.referring import Ref, Referring, collect, sentences_of

NAME = "grefcoco"


def read_grefer(root: Path, split: str) -> Referring:
    """Every ref of a split, grouped by image; several objects are united. Raises DatasetError; bad refs are listed."""
    path = root / NAME / "grefs(unc).json"
    refs = read_json(path)
    try:
        parsed = [Ref(r["ref_id"], r["image_id"], _targets(r), r["split"], sentences_of(r)) for r in refs]
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a list of gRefCOCO refs: {error}") from None
    return collect(parsed, path, root, NAME, split)


def _targets(ref: dict[str, Any]) -> tuple[int, ...]:
    return () if ref.get("no_target") or ref["ann_id"] == [-1] else tuple(ref["ann_id"])
