"""COCO panoptic: a PNG of segment ids and a list of segments; for Pix2Cap also the description of each thing."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.types import ImageRecord, Segment

CATEGORY = {kind: i + 1 for i, kind in enumerate(KINDS)}
BACKGROUND = len(CATEGORY) + 1
_STEP = 4096  # of the ids between categories: they need all of R, G and B


def panoptic_split(split: str) -> str:
    """The split of a panoptic file: train, or val for all that is held out."""
    return "train" if split == "train" else "val"


def folder(split: str) -> Path:
    return Path(f"annotations/panoptic_{panoptic_split(split)}2017")


def categories() -> list[dict[str, Any]]:
    things = [{"supercategory": "object", "isthing": 1, "id": i, "name": kind} for kind, i in CATEGORY.items()]
    return [*things, {"supercategory": "background", "isthing": 0, "id": BACKGROUND, "name": "background"}]


def segment_id(category: int, i: int) -> int:
    """The id of object `i` (from 0), unique in its image; never 0, which means unlabelled."""
    return category * _STEP + i


def write_png(path: Path, owner: np.ndarray, kinds: list[str]) -> Segment:
    """Write the ids as R + 256 G + 65536 B; return the segment of the background (area in pixels, bbox xywh)."""
    background = segment_id(BACKGROUND, 0)
    ids = [*(segment_id(CATEGORY[kind], i) for i, kind in enumerate(kinds)), background]  # owner -1: the last
    rgb = np.array([(n % 256, n // 256 % 256, n // 65536) for n in ids], np.uint8)
    Image.fromarray(rgb[owner]).save(path)
    free = owner < 0
    xs, ys = (np.flatnonzero(free.any(axis=axis)) for axis in (0, 1))
    left, top = int(xs[0]), int(ys[0])
    box = (left, top, int(xs[-1]) - left + 1, int(ys[-1]) - top + 1)
    return {"id": background, "category_id": BACKGROUND, "area": int(free.sum()), "bbox": box, "iscrowd": 0}


def annotation(record: ImageRecord, descriptions: list[str] | None = None) -> dict[str, Any]:
    """One entry of `annotations`; with `descriptions`, one an object, as Pix2Cap has it."""
    segments: list[Segment] = []
    for i, thing in enumerate(record.objects):
        category = CATEGORY[thing.kind]
        segment: Segment = {
            "id": segment_id(category, i),
            "category_id": category,
            "area": thing.area,
            "bbox": thing.bbox,
            "iscrowd": 0,
        }
        if descriptions:
            segment["description"] = descriptions[i]
        segments.append(segment)
    name = record.image["file_name"].replace(".jpg", ".png")
    return {"image_id": record.image["id"], "file_name": name, "segments_info": [*segments, record.background]}
