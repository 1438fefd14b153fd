"""Classes of COCO panoptic images as questions: one mask of all segments of a class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_panoptic import FILE, PNG_FOLDER, read_panoptic
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.panoptic_segments import ClassSegments, class_masks, united_turn, whole_classes
from pixel_sail.data.sources.record import SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import Templates

NAME = "coco_semantic"


def open_semantic(root: Path, split: str, data: DataConfig) -> RegionSource[ClassSegments]:
    """Samples of one image with several classes. Raises DatasetError; unusable images are listed in `.problems`.

    A class with a crowd is not asked for in that image: its mask would not be whole.
    """
    templates, path, finder, problems = Templates.of(data), FILE.find(root, split), ImageFinder(root), list[str]()

    def read() -> list[RegionImage[ClassSegments]]:
        panoptic = read_panoptic(root, split, path, finder, NAME, described=False)
        images = [RegionImage(image.key, image.path, whole_classes(image, panoptic)) for image in panoptic.images]
        problems.extend(panoptic.problems + [f"{image.key}: only crowds" for image in images if not image.items])
        images = [image for image in images if image.items]
        refuse_nothing(images, path, problems)
        return images

    images = kept_entries(f"{NAME}/{split}", (path,), finder.asked, RegionImage[ClassSegments], problems, read)
    return RegionSource(images, problems, data.expressions_per_image, partial(_ask, templates))


def _ask(
    templates: Templates, image: RegionImage[ClassSegments], drawn: list[ClassSegments], rng: np.random.Generator
) -> list[RegionTurn]:
    return [
        united_turn(templates, item.name, masks, len(masks), rng)
        for item, masks in zip(drawn, class_masks(image, drawn), strict=True)
    ]


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE, PNG_FOLDER),
        sample="an image",
        turn="a class; one `[SEG]`: all its segments united",
        open=open_semantic,
    ),
)
