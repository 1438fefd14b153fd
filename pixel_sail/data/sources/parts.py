"""Objects and their parts in COCO's format: PACO-LVIS (arXiv 2301.01795) and Pascal-Part, in the folders of LISA.

A category is an object ("bottle") or a part of one ("bottle:cap").
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.files import read_json
from pixel_sail.data.masks import from_coco
from pixel_sail.data.sources.coco import INSTANCES_FILE, ImageFinder
from pixel_sail.data.sources.entries import (
    category_names,
    member,
    parse_usable,
    records,
    refuse_nothing,
    size_member,
)
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.label_maps import COCO_FOLDERS
from pixel_sail.data.sources.panoptic_segments import united_turn
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.data.templates import Templates
from pixel_sail.types import BadSample

PACO, PASCAL_PART = "paco_lvis", "pascal_part"
FILES = {
    PACO: ExpectedFile(
        "vlpart/paco/annotations/paco_lvis_v1_{split}.json",
        other_places=("paco/annotations/paco_lvis_v1_{split}.json", "paco_lvis/annotations/paco_lvis_v1_{split}.json"),
    ),
    PASCAL_PART: ExpectedFile("vlpart/pascal_part/{split}.json", other_places=("pascal_part/{split}.json",)),
}
_VOC = "VOCdevkit/VOC2010/JPEGImages"
FOLDERS = {
    PACO: ("coco", *COCO_FOLDERS),  # its names begin with "train2017/" or "val2017/"
    PASCAL_PART: (f"vlpart/pascal_part/{_VOC}", f"pascal_part/{_VOC}", _VOC),
}


@dataclass(frozen=True, slots=True)
class PartClass:
    """All objects or parts of one category in one image."""

    wordings: tuple[str, ...]
    annotations: tuple[tuple[int, Any], ...]  # (id, segmentation as in the file: decoded only when it is drawn)
    size_hw: tuple[int, int]  # pixels


def open_parts(name: str, root: Path, split: str, data: DataConfig) -> RegionSource[PartClass]:
    """Samples of one image with several categories. Raises DatasetError; what is left out is listed in `.problems`.

    A category is not asked for in an image where the answer could not have all of it: some is a crowd, or the image
    says that it is not annotated exhaustively.
    """
    path, problems = FILES[name].find(root, split), list[str]()
    templates, finder, whole_name = Templates.of(data), ImageFinder(root, FOLDERS[name]), f"{name}/{split}"
    images = kept_entries(
        whole_name,
        (path,),
        finder.asked,
        RegionImage[PartClass],
        problems,
        lambda: _read(path, whole_name, finder, problems),
    )
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _read(path: Path, name: str, finder: ImageFinder, problems: list[str]) -> list[RegionImage[PartClass]]:
    values = read_json(path)
    grouped: dict[Any, dict[Any, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    names = category_names(values, path, INSTANCES_FILE)
    wordings = {category: wordings_of(category_name) for category, category_name in names.items()}
    for annotation in records(values, "annotations", ("image_id", "category_id"), path, INSTANCES_FILE):
        grouped[annotation["image_id"]][annotation["category_id"]].append(annotation)
    listed = records(values, "images", ("id",), path, INSTANCES_FILE)
    times = Counter(image["id"] for image in listed)
    images = [(image, f"{name}/image={image['id']}") for image in listed]
    left_out: Counter[str] = Counter()

    def parse(image: dict[str, Any], key: str) -> RegionImage[PartClass]:
        if times[image["id"]] > 1:
            raise BadSample(f"{key}: {times[image['id']]} images have this id, so their objects are not known")
        size, partial_ids = size_member(image, key), image.get("not_exhaustive_category_ids") or []
        if not isinstance(partial_ids, list):
            raise BadSample(
                f"{key}: its 'not_exhaustive_category_ids' are {reprlib.repr(partial_ids)}; expected a list"
            )
        classes = []
        for category, members in grouped[image["id"]].items():
            if category not in wordings:
                raise BadSample(f"{key}: category {category!r} is not in the list of categories")
            if category in partial_ids or any(annotation.get("iscrowd") for annotation in members):
                left_out["partial"] += 1
                continue
            visible = parse_usable(
                ((annotation, f"{key}: annotation {annotation.get('id')}") for annotation in members),
                lambda annotation, where: _visible(annotation, size, where),
                problems,
            )
            if visible:
                classes.append(PartClass(wordings[category], tuple(visible), size))
        if not classes:
            raise BadSample(f"{key}: no object or part is left")
        return RegionImage(key, finder.find(member(image, "file_name", str, key), key), tuple(classes))

    parsed = parse_usable(images, parse, problems)
    if left_out["partial"]:
        problems.append(f"{name}: {left_out['partial']} classes of an image have a crowd or are not exhaustive")
    refuse_nothing(parsed, path, problems)
    return parsed


def wordings_of(category: str) -> tuple[str, ...]:
    """ "trash_can" -> "trash can"; "dog_(animal):ear" -> "dog ear", "the ear of the dog"."""
    words = [re.sub(r"_\(.*?\)", "", word).replace("_", " ").strip() for word in category.split(":")]
    if len(words) == 1:
        return (words[0],)
    whole, part = words[0], " ".join(words[1:])
    return f"{whole} {part}", f"the {part} of the {whole}"


def _visible(annotation: dict[str, Any], size_hw: tuple[int, int], where: str) -> tuple[int, Any]:
    segmentation = member(annotation, "segmentation", object, where)
    refuse_empty(segmentation, size_hw, where)
    return annotation.get("id"), segmentation


def _ask(
    templates: Templates, image: RegionImage[PartClass], drawn: list[PartClass], rng: np.random.Generator
) -> list[RegionTurn]:
    turns = []
    for item in drawn:
        masks = [
            from_coco(segmentation, *item.size_hw, f"{image.key}: annotation {number}")
            for number, segmentation in item.annotations
        ]
        wording = item.wordings[rng.integers(len(item.wordings))]
        turns.append(united_turn(templates, wording, masks, len(masks), rng))
    return turns


RECORDS = tuple(
    SourceRecord(
        name=name,
        splits=splits,
        files=(FILES[name],),
        sample="an image",
        turn='an object or a part ("the cap of the bottle"); one `[SEG]`: all of its class',
        open=partial(open_parts, name),
        image_folders=FOLDERS[name],
    )
    for name, splits in ((PACO, ("train", "val", "test")), (PASCAL_PART, ("train", "val")))
)
