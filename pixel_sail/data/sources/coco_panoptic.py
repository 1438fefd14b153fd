"""COCO panoptic segments, and the class of a segment that a prompt points at."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.files import read_json
from pixel_sail.data.image import opened_image, to_rgb
from pixel_sail.data.inside import inside
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import (
    category_names,
    member,
    numbered,
    parse_usable,
    records,
    refuse_nothing,
    repeated,
    text_member,
)
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import CLASSIFY, OTHERS, classify
from pixel_sail.types import RLE, BadSample, NoPixels

NAME = "panoptic_category"
FILE = ExpectedFile("annotations/panoptic_{split}2017.json")
PNG_FOLDER = ExpectedFile("annotations/panoptic_{split}2017")
CANDIDATES = 3  # classes to choose from, beside "others"
OTHERS_RATE = 0.2  # how often the true class is not among them


@dataclass(frozen=True, slots=True)
class Segment:
    png: Path
    segment_id: int
    area_px: int | None  # of the annotation; None: not given
    text: str  # the name of its class, or a description


@dataclass(frozen=True)
class Panoptic:
    """One panoptic JSON."""

    images: list[RegionImage[Segment]]
    problems: list[str]
    classes: tuple[str, ...]
    stuff: frozenset[str]  # classes that cannot be counted, such as grass and sky
    crowds: frozenset[tuple[str, str]]  # (key of the image, class) where segments were left out as crowds


def open_panoptic(root: Path, split: str, data: DataConfig) -> RegionSource[Segment]:
    """ "What is this segment?" Raises DatasetError; unusable images are listed in `.problems`."""
    panoptic = read_panoptic(root, split, FILE.find(root, split), ImageFinder(root), NAME, described=False)
    return RegionSource(panoptic.images, panoptic.problems, data.expressions_per_image, partial(_ask, panoptic.classes))


def read_panoptic(root: Path, split: str, path: Path, finder: ImageFinder, name: str, described: bool) -> Panoptic:
    """The segments of a split, without crowds: with their description (`described`), or with the name of their class.

    Segments without a description are then left out. No PNG is decoded: `segment_masks` does that. Raises DatasetError.
    """
    values, problems = read_json(path), list[str]()
    what = "a COCO panoptic file"
    listed = [] if described else records(values, "categories", ("id",), path, what)
    classes = {} if described else _class_names(category_names(values, path, what))
    stuff = frozenset(classes[category["id"]] for category in listed if not category.get("isthing", 1))
    annotations = records(values, "annotations", (), path, what)
    images_twice = repeated(a["image_id"] for a in annotations if isinstance(a.get("image_id"), int))
    images = records(values, "images", ("id",), path, what) if "images" in values else []
    files = {image["id"]: image.get("file_name") for image in images}
    folder = PNG_FOLDER.path(root, split)
    left_out = {"crowd": 0, "described": 0}
    crowds: set[tuple[str, str]] = set()

    def parse(annotation: Any, where: str) -> RegionImage[Segment]:
        key = f"{name}/{split}/image={member(annotation, 'image_id', int, where)}"
        if annotation["image_id"] in images_twice:
            raise BadSample(f"{key}: several annotations have this image")
        png = folder / inside(member(annotation, "file_name", str, key), key)
        if not finder.asked.has_file(png, key):
            raise BadSample(f"{key}: no file {png}")
        file_name = files.get(annotation["image_id"], f"{png.stem}.jpg")
        image_path = finder.find(member({"file_name": file_name}, "file_name", str, f"{key}: its image"), key)
        infos = member(annotation, "segments_info", list, key)
        segments = _segments(infos, png, classes, described, left_out, problems, key)
        crowds.update((key, classes.get(info.get("category_id"), "")) for info in infos if info.get("iscrowd"))
        return RegionImage(key, image_path, segments)

    images = parse_usable(numbered(annotations, f"{name}/{split}"), parse, problems)
    problems += [
        f"{name}/{split}: {left_out[kind]} {what}"
        for kind, what in (("crowd", "crowd segments are left out"), ("described", "segments have no description"))
        if left_out[kind]
    ]
    refuse_nothing(images, path, problems)
    return Panoptic(images, problems, tuple(dict.fromkeys(classes.values())), stuff, frozenset(crowds))


def segment_masks(image: RegionImage[Segment]) -> dict[int, RLE]:
    """Segment id -> mask, of all items of the image.

    One that is not in the PNG, and of which the annotation gives no area, is empty. Raises BadSample if PNG and
    annotation contradict each other.
    """
    png = image.items[0].png
    try:
        with opened_image(png) as stored:
            if len(stored.getbands()) < 3 and stored.mode != "P":
                raise BadSample(f"{png} is of mode {stored.mode}; the number of a segment is in the three colours")
            rgb = np.asarray(to_rgb(stored), dtype=np.int32)  # (H, W, 3)
    except BadSample as error:
        raise BadSample(f"{image.key}: {error}") from None
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    masks = {}
    for segment in image.items:
        mask = ids == segment.segment_id
        pixels = int(np.count_nonzero(mask))
        if pixels == 0 and segment.area_px is not None:
            raise BadSample(f"{image.key}: segment {segment.segment_id} has no pixel in {png}")
        if segment.area_px not in (None, pixels):
            raise BadSample(
                f"{image.key}: segment {segment.segment_id} has {pixels} pixels in {png}, its area is {segment.area_px}"
            )
        masks[segment.segment_id] = encode_mask(mask)
    return masks


def _segments(
    infos: list[Any],
    png: Path,
    classes: dict[int, str],
    described: bool,
    left_out: dict[str, int],
    problems: list[str],
    key: str,
) -> tuple[Segment, ...]:
    segments = []
    twice = repeated(member(info, "id", int, f"{key}: a segment") for info in infos)
    if twice:
        raise BadSample(f"{key}: several of its segments have the id {min(twice, key=str)}")
    for info in infos:
        segment_id = info["id"]
        where = f"{key}: segment {segment_id}"
        area = info.get("area")
        if area is not None and (isinstance(area, bool) or not isinstance(area, int | float) or not area >= 0):
            raise BadSample(f"{where}: its 'area' is {reprlib.repr(area)}; expected a number of pixels")
        if not isinstance(info.get("category_id"), int | str | None):
            raise BadSample(f"{where}: category {reprlib.repr(info['category_id'])} is not in the list of categories")
        if info.get("iscrowd"):
            left_out["crowd"] += 1
        elif area == 0:
            problems.append(f"{where}: its area is 0 pixels")
        elif described and not info.get("description"):
            left_out["described"] += 1
        elif described:
            segments.append(Segment(png, segment_id, info.get("area"), text_member(info, "description", where)))
        elif info.get("category_id") not in classes:
            raise BadSample(
                f"{where}: category {reprlib.repr(info.get('category_id'))} is not in the list of categories"
            )
        else:
            segments.append(Segment(png, segment_id, info.get("area"), classes[info["category_id"]]))
    if not segments:
        raise NoPixels(f"{key}: no segment {'with a description ' if described else ''}is left")
    return tuple(segments)


def _class_names(names: dict[int, str]) -> dict[int, str]:
    """COCO's "wall-other-merged" is a wall; the long name stays where the short one is another class."""
    short = {i: re.sub(r"(-other)?(-merged)?$|-stuff$", "", name) for i, name in names.items()}
    return {i: name if list(short.values()).count(short[i]) > 1 else short[i] for i, name in names.items()}


def _ask(
    classes: tuple[str, ...], image: RegionImage[Segment], drawn: list[Segment], rng: np.random.Generator
) -> list[RegionTurn]:
    masks = segment_masks(image)
    turns = []
    for segment in drawn:
        # Classes that the image shows come first: otherwise the image alone, without the region, would tell the answer.
        here = sorted({other.text for other in image.items} - {segment.text})
        elsewhere = [name for name in classes if name not in here and name != segment.text]
        wrong = [*rng.permutation(here), *rng.permutation(elsewhere)]
        known = rng.random() >= OTHERS_RATE
        offered = [segment.text, *wrong[: CANDIDATES - 1]] if known else wrong[:CANDIDATES]
        candidates = [str(offered[i]) for i in rng.permutation(len(offered))]
        question = classify("<Prompt0>", candidates, CLASSIFY[rng.integers(len(CLASSIFY))])
        turns.append(RegionTurn(question, segment.text if known else OTHERS, {0: masks[segment.segment_id]}))
    return turns


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE, PNG_FOLDER),
        sample="an image",
        turn='a region; its class is chosen among candidates and "others"',
        open=open_panoptic,
    ),
)
