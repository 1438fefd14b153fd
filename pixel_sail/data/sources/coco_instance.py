"""COCO instances: a class is asked for, each object has a mask. `<root>/annotations/instances_{split}2017.json`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px, decode_mask, from_coco
from pixel_sail.data.sources.coco import ImageFinder, read_json
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE, BadSample

NAME = "coco_instance"
MAX_OBJECTS = 20  # masks of one answer; a class with more objects in an image is not asked for there


@dataclass(frozen=True, slots=True)
class ClassObjects:
    """The objects of one class in one image."""

    name: str
    annotations: tuple[tuple[int, Any], ...]  # (id, segmentation as in the file: decoded only when it is drawn)
    size_hw: tuple[int, int]  # pixels


def open_coco_instance(root: Path, split: str, templates: Templates, count: int) -> RegionSource[ClassObjects]:
    """Samples of one image with up to `count` classes. Raises DatasetError; problems are listed.

    "Each" must be all there are: a class with a crowd, or with too many objects, is not asked for in that image.
    """
    path, finder, problems = root / "annotations" / f"instances_{split}2017.json", ImageFinder(root), list[str]()
    values = read_json(path)
    grouped: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    try:
        names = {category["id"]: category["name"] for category in values["categories"]}
        for annotation in values["annotations"]:
            grouped[annotation["image_id"], annotation["category_id"]].append(annotation)
        classes: dict[int, list[ClassObjects]] = defaultdict(list)
        sizes = {image["id"]: (image["height"], image["width"]) for image in values["images"]}
        files = {image["id"]: image["file_name"] for image in values["images"]}
        left_out = 0
        for (image_id, category), found in grouped.items():
            if len(found) > MAX_OBJECTS or any(one.get("iscrowd") for one in found):
                left_out += 1
                continue
            objects = tuple((one["id"], one["segmentation"]) for one in found)
            classes[image_id].append(ClassObjects(names[category], objects, sizes[image_id]))
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a COCO instances file: no {error}") from None
    if left_out:
        problems.append(f"{NAME}/{split}: {left_out} classes of an image have a crowd or over {MAX_OBJECTS} objects")
    images = []
    for image_id, shown in sorted(classes.items()):
        key = f"{NAME}/{split}/image={image_id}"
        try:
            images.append(RegionImage(key, finder.find(files[image_id], key), tuple(shown)))
        except BadSample as error:
            problems.append(str(error))
    refuse_nothing(images, path, problems)
    return RegionSource(images, problems, count, partial(_ask, templates))


def _ask(
    templates: Templates, image: RegionImage[ClassObjects], drawn: list[ClassObjects], rng: np.random.Generator
) -> list[RegionTurn]:
    return [each_turn(templates, one.name, _masks(image.key, one), rng) for one in drawn]


def _masks(key: str, objects: ClassObjects) -> list[RLE]:
    masks = []
    for number, segmentation in objects.annotations:
        mask = from_coco(segmentation, *objects.size_hw, f"{key}: annotation {number}")
        if area_px(mask) == 0:
            raise BadSample(f"{key}: annotation {number} has no pixel")
        masks.append(mask)
    return masks


def each_turn(templates: Templates, name: str, masks: list[RLE], rng: np.random.Generator) -> RegionTurn:
    """Asks for every object of a class; one [SEG] each, from left to right: an order that the image shows."""
    turn = templates.each(name, len(masks), rng)
    return RegionTurn(turn.question, turn.answer, masks=tuple(sorted(masks, key=_left_px)))


def _left_px(mask: RLE) -> int:
    return int(decode_mask(mask).any(axis=0).argmax())
