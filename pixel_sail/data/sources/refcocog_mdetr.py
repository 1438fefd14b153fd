"""RefCOCOg's captions of regions in one COCO-like file, as GLaMM, Osprey and Sa2VA use it, with masks.

Each entry of `images` is one expression: {id, file_name, height, width, caption}; its annotation has the mask. The
image itself comes as often as it has expressions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.files import read_json
from pixel_sail.data.masks import from_coco
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, parse_usable, records, refuse_nothing, size_member, text_member
from pixel_sail.data.sources.kept import kept_entries
from pixel_sail.data.sources.record import ExpectedFile, SourceRecord
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.data.templates import TELL_APART, about
from pixel_sail.types import BadSample

NAME = "refcocog_mdetr_captions"
_FILE_NAME = "finetune_refcocog_{split}_with_mask.json"
FILE = ExpectedFile(
    f"RefCoco_Reg/mdetr_annotations/{_FILE_NAME}",
    other_places=(f"region_caption/refcocog/{_FILE_NAME}", f"region_caption/{_FILE_NAME}", f"refcocog/{_FILE_NAME}"),
)
FOLDERS = (*ImageFinder.FOLDERS, "coco_2014/train2014")


@dataclass(frozen=True, slots=True)
class Expression:
    where: str
    text: str
    segmentation: Any  # as in the file: decoded only when it is drawn
    size_hw: tuple[int, int]  # pixels


def open_captions(root: Path, split: str, data: DataConfig) -> RegionSource[Expression]:
    """Samples of one image with several expressions. Raises DatasetError; unusable entries are in `.problems`."""
    path, finder, problems = FILE.find(root, split), ImageFinder(root, FOLDERS), list[str]()
    name = f"{NAME}/{split}"
    images = kept_entries(
        name, (path,), finder.asked, RegionImage[Expression], problems, lambda: _read(path, name, finder, problems)
    )
    return RegionSource(images, problems, data.expressions_per_image, _ask)


def _read(path: Path, name: str, finder: ImageFinder, problems: list[str]) -> list[RegionImage[Expression]]:
    values, what = read_json(path), "a COCO-like file of expressions"
    listed = records(values, "images", ("id",), path, what)
    entries = [(entry, f"{name}/id={entry['id']}") for entry in listed]
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in records(values, "annotations", ("image_id",), path, what):
        annotations[annotation["image_id"]].append(annotation)
    times = Counter(entry["id"] for entry in listed)

    def parse(entry: Any, where: str) -> tuple[Path, Expression]:
        if times[entry["id"]] > 1:
            raise BadSample(f"{where}: {times[entry['id']]} expressions have this id, so their masks are not known")
        own = annotations[entry["id"]]
        if len(own) != 1:
            raise BadSample(f"{where}: it has {len(own)} annotations, expected one")
        segmentation, text = member(own[0], "segmentation", object, where), text_member(entry, "caption", where)
        size = size_member(entry, where)
        refuse_empty(segmentation, size, where)
        return finder.find(member(entry, "file_name", str, where), where), Expression(where, text, segmentation, size)

    by_image: dict[Path, list[Expression]] = defaultdict(list)
    for image, expression in parse_usable(entries, parse, problems):
        by_image[image].append(expression)
    images = [RegionImage(f"{name}/image={image.name}", image, tuple(of_image)) for image, of_image in by_image.items()]
    refuse_nothing(images, path, problems)
    return images


def _ask(image: RegionImage[Expression], drawn: list[Expression], rng: np.random.Generator) -> list[RegionTurn]:
    return [
        RegionTurn(
            question=about("<Prompt0>", TELL_APART[rng.integers(len(TELL_APART))]),
            answer=expression.text,
            prompts={0: from_coco(expression.segmentation, *expression.size_hw, expression.where)},
        )
        for expression in drawn
    ]


RECORDS = (
    SourceRecord(
        name=NAME,
        splits=("train", "val"),
        files=(FILE,),
        sample="an image",
        turn="a region and an expression that refers to it",
        open=open_captions,
        image_folders=FOLDERS,
    ),
)
