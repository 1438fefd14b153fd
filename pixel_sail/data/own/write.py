"""Writes a dataset of one's own: images/ and annotations/instances_{split}.json, which the source `concepts` reads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px
from pixel_sail.data.own.objects import OwnImage
from pixel_sail.durable import replaced_folder


def with_splits(images: Sequence[OwnImage], val: float, seed: int) -> list[OwnImage]:
    """Each with a split. Where the export has none for validation, a share `val` of its training images is drawn."""
    images = [replace(image, split=image.split or "train") for image in images]
    train = [number for number, image in enumerate(images) if image.split == "train"]
    if any(image.split == "val" for image in images) or not val:
        return images
    count = max(1, round(val * len(train))) if len(train) > 1 else 0
    for number in np.random.default_rng(seed).permutation(train)[:count].tolist():
        images[number] = replace(images[number], split="val")
    return images


def write_own(images: Sequence[OwnImage], out: Path) -> dict[str, Counter[str]]:
    """Writes images (copied) and annotations into the new folder `out`. Returns split -> category -> objects.

    Raises DatasetError if `out` holds something, and if there is no object at all.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is there already; give another --out, or delete it")
    repeated = [name for name, times in Counter(image.name for image in images).items() if times > 1]
    if repeated:
        raise DatasetError(
            f"{len(repeated)} images would have a name twice, the first {repeated[0]}; rename one of them"
        )
    names = sorted({thing.name for image in images for thing in image.objects})
    if not names:
        raise DatasetError("no image has an object: there is nothing to learn")
    category = {name: number for number, name in enumerate(names, start=1)}
    splits = {split: [image for image in images if image.split == split] for split in ("train", "val", "test")}
    with replaced_folder(out) as folder:
        for image in images:
            place = folder / "images" / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image.path, place)
        (folder / "annotations").mkdir()
        for split, of_split in splits.items():
            if of_split:
                text = json.dumps(_instances(of_split, category))
                (folder / f"annotations/instances_{split}.json").write_text(text, encoding="utf-8")
    return {
        split: Counter(thing.name for image in of_split for thing in image.objects)
        for split, of_split in splits.items()
        if of_split
    }


def _instances(images: Sequence[OwnImage], category: dict[str, int]) -> dict[str, Any]:
    listed, annotations = [], []
    for number, image in enumerate(images, start=1):
        listed.append({"id": number, "file_name": image.name, "height": image.size_hw[0], "width": image.size_hw[1]})
        for thing in image.objects:
            box = coco_mask.toBbox({**thing.mask, "counts": thing.mask["counts"].encode()})
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category[thing.name],
                    "segmentation": thing.segmentation,
                    "area": area_px(thing.mask),
                    "bbox": box.tolist(),
                    "iscrowd": int(thing.is_crowd),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category.items()]
    return {"images": listed, "annotations": annotations, "categories": categories}
