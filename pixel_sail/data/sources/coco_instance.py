"""COCO instances: a class is asked for, and each object has a mask."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.masks import decode_mask, may_have_no_pixels, object_mask
from pixel_sail.data.sources.coco import INSTANCES_FILE, ImageFinder
from pixel_sail.data.sources.entries import (
    category_names,
    member,
    parse_usable,
    records,
    refuse_nothing,
    repeated,
    size_member,
)
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates
from pixel_sail.types import RLE, BadSample, NoPixels

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
    """Samples of one image with several classes. Raises DatasetError; what cannot be used is listed in `.problems`.

    The answer must have every object of a class: one with a crowd, or with too many objects, is not asked for in that
    image. An object without a pixel does not count as one: the others of its class stay.
    """
    templates, finder, problems = Templates.of(data), ImageFinder(root), list[str]()
    path = FILE.find(root, split)
    images = kept_entries(
        f"{NAME}/{split}",
        (path,),
        finder.asked,
        RegionImage[ClassObjects],
        problems,
        lambda: _read(path, split, finder, problems),
    )
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _read(path: Path, split: str, finder: ImageFinder, problems: list[str]) -> list[RegionImage[ClassObjects]]:
    key, instances = f"{NAME}/{split}/image={{}}", Instances.read(path)
    left_out = 0

    def parse(image_id: Any, key: str) -> RegionImage[ClassObjects]:
        nonlocal left_out
        image, size = instances.image(image_id, key)
        file, classes = finder.find(member(image, "file_name", str, key), key), []
        for category, of_class in instances.by_image[image_id].items():
            if len(of_class) > MAX_OBJECTS or any(annotation.get("iscrowd") for annotation in of_class):
                left_out += 1
            elif objects := instances.objects(of_class, size, key, problems):
                classes.append(ClassObjects(instances.classes[category], objects, size))
        return RegionImage(key, file, tuple(classes))

    keys = ((image_id, key.format(image_id)) for image_id in sorted(instances.by_image, key=id_order))
    images = [image for image in parse_usable(keys, parse, problems) if image.items]
    if left_out:
        line = f"{NAME}/{split}: {left_out} classes of an image have a crowd or over {MAX_OBJECTS} objects"
        problems.insert(0, line)
    refuse_nothing(images, path, problems)
    return images


@dataclass(frozen=True)
class Instances:
    """A COCO instances file."""

    path: Path
    classes: dict[Any, str]  # category id -> name
    images: dict[Any, dict[str, Any]]
    by_image: dict[Any, dict[Any, list[dict[str, Any]]]]  # image id -> category id -> annotations
    repeated_images: frozenset[Any]  # ids of several images
    repeated_annotations: frozenset[Any]
    supercategories: dict[Any, str]  # category id -> its supercategory, "" without one

    @classmethod
    def read(cls, path: Path) -> Instances:
        values = read_json(path)
        by_image: dict[Any, dict[Any, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        classes = category_names(values, path, INSTANCES_FILE)
        listed = records(values, "images", ("id",), path, INSTANCES_FILE)
        annotated = records(values, "annotations", ("id", "image_id", "category_id"), path, INSTANCES_FILE)
        for annotation in annotated:
            if annotation["category_id"] not in classes or "segmentation" not in annotation:
                missing = reprlib.repr(annotation["category_id"] if "segmentation" in annotation else "segmentation")
                raise DatasetError(f"{path} is not {INSTANCES_FILE}: no {missing}, of annotation {annotation['id']}")
            by_image[annotation["image_id"]][annotation["category_id"]].append(annotation)
        images, images_twice = {image["id"]: image for image in listed}, repeated(image["id"] for image in listed)
        twice = repeated(entry["id"] for entry in annotated)
        above = {category["id"]: str(category.get("supercategory") or "") for category in values["categories"]}
        return cls(path, classes, images, by_image, images_twice, twice, above)

    def image(self, image_id: Any, key: str) -> tuple[dict[str, Any], tuple[int, int]]:
        """The image and its (height, width). Raises BadSample if it is missing, listed twice or has no size."""
        if image_id not in self.images:
            raise BadSample(f"{key}: image {image_id!r} is not in {self.path}")
        if image_id in self.repeated_images:
            raise BadSample(f"{key}: {self.path} has several images with the id {image_id}")
        return self.images[image_id], size_member(self.images[image_id], key)

    def objects(
        self, annotations: list[dict[str, Any]], size_hw: tuple[int, int], key: str, problems: list[str]
    ) -> tuple[tuple[int, Any], ...]:
        """(id, segmentation) of the objects of a class; none if two annotations of the file have the id of one."""
        for annotation in annotations:
            if annotation["id"] in self.repeated_annotations:
                name = self.classes[annotation["category_id"]]
                problems.append(
                    f"{key}: {self.path} has several annotations with the id {annotation['id']}; {name!r} is left out"
                )
                return ()
        kept = []
        for annotation in annotations:
            try:
                if may_have_no_pixels(annotation):
                    where = f"{key}: annotation {annotation['id']}"
                    object_mask(annotation["segmentation"], *size_hw, where, problems)
            except NoPixels as error:
                problems.append(str(error))
                continue
            except BadSample:
                pass  # a fault of the file: reported when the object is drawn
            kept.append((annotation["id"], annotation["segmentation"]))
        return tuple(kept)


def id_order(image_id: Any) -> tuple[bool, Any]:
    """Numbers before text: ids should be numbers, and files that mix both must not stop the sorting."""
    return isinstance(image_id, str), image_id


def _ask(
    templates: Templates, image: RegionImage[ClassObjects], drawn: list[ClassObjects], rng: np.random.Generator
) -> list[RegionTurn]:
    return [each_turn(templates, item.name, masks_of(item.annotations, item.size_hw, image.key), rng) for item in drawn]


def masks_of(annotations: Sequence[tuple[int, Any]], size_hw: tuple[int, int], key: str) -> list[RLE]:
    """The masks of (id, segmentation). Raises BadSample, beginning with `key`, and NoPixels for one without pixels."""
    return [object_mask(segmentation, *size_hw, f"{key}: annotation {number}") for number, segmentation in annotations]


def each_turn(templates: Templates, name: str, masks: list[RLE], rng: np.random.Generator) -> RegionTurn:
    """Asks for every object of a class; one [SEG] each, from left to right, an order that the image shows.

    Without masks, the answer is that there is none.
    """
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
