"""COCO instances: a class is asked for, and each object has a mask."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.masks import area_px, decode_mask, from_coco
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import parse_usable, refuse_nothing
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE, BadSample

NAME = "coco_instance"
FILE = ExpectedFile("annotations/instances_{split}2017.json")
MAX_OBJECTS = 20  # masks of one answer; a class with more objects in an image is not asked for in that image


@dataclass(frozen=True, slots=True)
class ClassObjects:
    """The objects of one class in one image."""

    name: str
    annotations: tuple[tuple[int, Any], ...]  # (id, segmentation as in the file: decoded only when it is drawn)
    size_hw: tuple[int, int]  # pixels


def open_coco_instance(root: Path, split: str, data: DataConfig) -> RegionSource[ClassObjects]:
    """Samples of one image with several classes. Raises DatasetError; unusable images are listed in `.problems`.

    The answer must have every object of a class: one with a crowd, or with too many objects, is not asked for in that
    image.
    """
    templates, finder, problems = Templates.of(data), ImageFinder(root), list[str]()
    path = FILE.find(root, split)
    classes, files, left_out = _classes_by_image(path)
    if left_out:
        problems.append(f"{NAME}/{split}: {left_out} classes of an image have a crowd or over {MAX_OBJECTS} objects")

    def with_image(image_id: int, key: str) -> RegionImage[ClassObjects]:
        return RegionImage(key, finder.find(files[image_id], key), tuple(classes[image_id]))

    keys = ((image_id, f"{NAME}/{split}/image={image_id}") for image_id in sorted(classes))
    images = parse_usable(keys, with_image, problems)
    refuse_nothing(images, path, problems)
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _classes_by_image(path: Path) -> tuple[dict[int, list[ClassObjects]], dict[int, str], int]:
    """Image id -> its classes; image id -> file name; and how many classes of an image were left out."""
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
        for (image_id, category), annotations in grouped.items():
            if len(annotations) > MAX_OBJECTS or any(annotation.get("iscrowd") for annotation in annotations):
                left_out += 1
                continue
            objects = tuple((annotation["id"], annotation["segmentation"]) for annotation in annotations)
            classes[image_id].append(ClassObjects(names[category], objects, sizes[image_id]))
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a COCO instances file: no {error}") from None
    return classes, files, left_out


def _ask(
    templates: Templates, image: RegionImage[ClassObjects], drawn: list[ClassObjects], rng: np.random.Generator
) -> list[RegionTurn]:
    return [each_turn(templates, item.name, _masks(image.key, item), rng) for item in drawn]


def _masks(key: str, objects: ClassObjects) -> list[RLE]:
    masks = []
    for number, segmentation in objects.annotations:
        mask = from_coco(segmentation, *objects.size_hw, f"{key}: annotation {number}")
        if area_px(mask) == 0:
            raise BadSample(f"{key}: annotation {number} has no pixel")
        masks.append(mask)
    return masks


def each_turn(templates: Templates, name: str, masks: list[RLE], rng: np.random.Generator) -> RegionTurn:
    """Asks for every object of a class; one [SEG] each, from left to right, an order that the image shows."""
    turn = templates.each(name, len(masks), rng)
    return RegionTurn(turn.question, turn.answer, masks=tuple(sorted(masks, key=_left_px)))


def _left_px(mask: RLE) -> int:
    return int(decode_mask(mask).any(axis=0).argmax())


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE,),
        sample="an image",
        turn='a class; one `[SEG]` per object, from left to right: "[SEG], [SEG] and [SEG]"',
        open=open_coco_instance,
    ),
)
