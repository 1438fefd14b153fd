"""What several of the written formats share: compact JSON, the head of COCO's files, instances, conversations."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixel_sail.scenes.panoptic import CATEGORY
from pixel_sail.scenes.types import ImageRecord, Request, Turn

IMAGES = Path("images/train2014")


def write_compact_json(path: Path, value: Any) -> None:
    """Write JSON without spaces; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write a line of compact JSON for each value."""
    lines = (json.dumps(value, separators=(",", ":")) + "\n" for value in values)
    path.write_text("".join(lines), encoding="utf-8")


def held_out(records: list[ImageRecord]) -> list[ImageRecord]:
    return [record for record in records if record.split != "train"]


def training(records: list[ImageRecord]) -> list[ImageRecord]:
    return [record for record in records if record.split == "train"]


def info(request: Request) -> dict[str, Any]:
    """The `info` of a COCO file."""
    return {"description": "pixel_sail scenes: drawn pictures with exact masks", **request}


def coco_instances(records: list[ImageRecord], polygons: bool) -> dict[str, Any]:
    """The `images`, `annotations` and `categories` of a COCO instances file.

    Masks are RLEs or, with `polygons`, polygons where these are exact (see `segmentation`).
    """
    annotations = [
        {
            "id": thing.ann_id,
            "image_id": record.image["id"],
            "category_id": CATEGORY[thing.kind],
            "segmentation": segmentation(record, i) if polygons else thing.segmentation,
            "area": thing.area,
            "bbox": thing.bbox,
            "iscrowd": 0,
        }
        for record in records
        for i, thing in enumerate(record.objects)
    ]
    categories = [{"supercategory": "object", "id": i, "name": kind} for kind, i in CATEGORY.items()]
    return {"images": [record.image for record in records], "annotations": annotations, "categories": categories}


def segmentation(record: ImageRecord, i: int) -> Any:
    """COCO polygons of an object; its RLE where no polygons describe it exactly, as for one with a hole."""
    return record.polygons[i].coco or record.objects[i].segmentation


def conversation(turns: list[Turn], start: str = "") -> list[dict[str, str]]:
    """Turns as LLaVA and Osprey write them; `start` comes before the first question."""
    messages = [
        {"from": speaker, "value": text} for turn in turns for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    messages[0]["value"] = start + messages[0]["value"]
    return messages
