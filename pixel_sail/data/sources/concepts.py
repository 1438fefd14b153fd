"""Concepts: all instances of a category are asked for, also of categories that are not in the image.

From a COCO instances file whose images have every object of its categories annotated. The questions ask for each
object (templates.instance_questions), so that a plain expression keeps its one mask. Where a category is there, the
answer has a [SEG] for each object, from left to right, as in `coco_instance`: an order that the image shows, and in
which one mask after the other can be found. Where it is not, the answer is that of gRefCOCO without a target.

As many absent categories as present ones are asked for (SAM 3, arXiv 2511.16719, found that presence is learned from
hard negatives), but of those in this file that are easily taken for what is there: see `Confusable`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_instance import MAX_OBJECTS, Instances, each_turn, id_order, masks_of
from pixel_sail.data.sources.entries import member, parse_usable, refuse_nothing
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates, instance_questions

NAME = "concepts"
FILE = ExpectedFile("annotations/instances_{split}2017.json", ("annotations/instances_{split}.json",))
MOST_CONFUSABLE = 10  # absent categories of an image from which training draws, or as many as are present


@dataclass(frozen=True, slots=True)
class Concept:
    """What can be asked for in an image."""

    names: tuple[str, ...]  # that of the category; or of several absent ones, of which one is asked for
    annotations: tuple[tuple[int, Any], ...]  # (id, segmentation as in the file: decoded only when it is drawn)
    size_hw: tuple[int, int]  # pixels


def open_concepts(root: Path, split: str, data: DataConfig) -> RegionSource[Concept]:
    """Samples of one image with several categories. Raises DatasetError; what cannot be used is in `.problems`.

    A category with a crowd, or with more than MAX_OBJECTS objects, is neither present nor absent in that image.
    """
    templates = replace(Templates.of(data), questions_each=instance_questions(data.questions))
    finder, problems = ImageFinder(root), list[str]()
    path = FILE.find(root, split)
    images = kept_entries(
        f"{NAME}/{split}",
        (path,),
        finder.asked,
        RegionImage[Concept],
        problems,
        lambda: read_concepts(path, split, finder, problems, MAX_OBJECTS),
    )
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def read_concepts(
    path: Path, split: str, finder: ImageFinder, problems: list[str], most: int | None = None
) -> list[RegionImage[Concept]]:
    """The images of a file, also those without an object, each with its present categories, then as many absent ones.

    One absent category if none is present. `most`: as MAX_OBJECTS; None: no such rule. Raises DatasetError.
    """
    key, instances = f"{NAME}/{split}/image={{}}", Instances.read(path)
    objects = _by_name(instances)
    above = {phrase(instances.classes[number]): name for number, name in instances.supercategories.items()}
    confusable = Confusable.of(objects.values(), above)
    left_out = 0

    def parse(image_id: Any, key: str) -> RegionImage[Concept]:
        nonlocal left_out
        image, size = instances.image(image_id, key)
        file, present = finder.find(member(image, "file_name", str, key), key), []
        annotated = objects.get(image_id, {})
        for name, of_name in annotated.items():
            too_many = most is not None and len(of_name) > most
            if too_many or any(annotation.get("iscrowd") for annotation in of_name):
                left_out += 1
            elif kept := instances.objects(of_name, size, key, problems):
                present.append(Concept((name,), kept, size))
        count = max(len(present), 1)
        pool = confusable.absent(annotated)[: max(MOST_CONFUSABLE, count)]
        absent = [Concept(tuple(pool[first::count]), (), size) for first in range(min(count, len(pool)))]
        return RegionImage(key, file, (*present, *absent))

    ids = sorted(dict.fromkeys((*instances.by_image, *instances.images)), key=id_order)
    images = parse_usable(((image_id, key.format(image_id)) for image_id in ids), parse, problems)
    images = [image for image in images if image.items]
    if left_out:
        many = "" if most is None else f" or over {most} objects"
        problems.insert(0, f"{NAME}/{split}: {left_out} categories of an image have a crowd{many}")
    refuse_nothing(images, path, problems)
    return images


def _by_name(instances: Instances) -> dict[Any, dict[str, list[dict[str, Any]]]]:
    """Image id -> category -> annotations. Categories of one name are one."""
    by_image: dict[Any, dict[str, list[dict[str, Any]]]] = {}
    for image_id, by_category in instances.by_image.items():
        of_image = by_image.setdefault(image_id, {})
        for category, of_category in by_category.items():
            of_image.setdefault(phrase(instances.classes[category]), []).extend(of_category)
    return by_image


def phrase(category: str) -> str:
    """How a category is asked for: "traffic_light" as "traffic light"."""
    return category.replace("_", " ").strip() or category


@dataclass(frozen=True)
class Confusable:
    """Which categories are easily taken for those of an image: of one supercategory with them, or often beside them."""

    names: tuple[str, ...]  # those that have an object in the file, sorted
    shares: np.ndarray  # (C, C) float64: of the images with category i, the share that has category j as well
    frequency: np.ndarray  # (C,) images that have the category
    supercategories: tuple[str, ...]  # of each

    @classmethod
    def of(cls, images: Iterable[Collection[str]], supercategories: dict[str, str]) -> Confusable:
        """`images`: the categories of each."""
        images = list(images)
        names = tuple(sorted({name for image in images for name in image}))
        number = {name: i for i, name in enumerate(names)}
        together = np.zeros((len(names), len(names)))
        for image in images:
            present = [number[name] for name in image]
            together[np.ix_(present, present)] += 1
        frequency = together.diagonal().copy()
        shares = together / np.maximum(frequency, 1)[:, None]
        return cls(names, shares, frequency, tuple(supercategories.get(name, "") for name in names))

    def absent(self, present: Collection[str]) -> list[str]:
        """The other categories, the most confusable first.

        In turn one of a supercategory that is present and one of another; in both, those first that are most often
        beside one of the present categories (in an image without any: that are in most images), then by name.
        """
        inside = [i for i, name in enumerate(self.names) if name in present]
        rank = self.shares[inside].max(axis=0) if inside else self.frequency
        order = [i for i in np.argsort(-rank, kind="stable").tolist() if self.names[i] not in present]
        near = {self.supercategories[i] for i in inside} - {""}
        related = [self.names[i] for i in order if self.supercategories[i] in near]
        others = [self.names[i] for i in order if self.supercategories[i] not in near]
        pairs = zip_longest(related, others)
        return [name for pair in pairs for name in pair if name is not None]


def _ask(
    templates: Templates, image: RegionImage[Concept], drawn: list[Concept], rng: np.random.Generator
) -> list[RegionTurn]:
    turns = []
    for item in drawn:
        name = item.names[rng.integers(len(item.names))]
        turns.append(each_turn(templates, name, masks_of(item.annotations, item.size_hw, image.key), rng))
    return turns


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE,),
        sample="an image",
        turn="a category: one `[SEG]` per object, from left to right; half of them are absent, and the answer says so",
        open=open_concepts,
    ),
)
