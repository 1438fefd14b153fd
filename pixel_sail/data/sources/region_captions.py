"""RefCOCO, RefCOCO+ and RefCOCOg the other way round: from a region to an expression that tells it apart."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pixel_sail.config import DataConfig
from pixel_sail.data.sources.coco import COCO_2014_FOLDERS
from pixel_sail.data.sources.record import SourceRecord
from pixel_sail.data.sources.refer import NAMES, read_refer, refer_files
from pixel_sail.data.sources.referring import Referent
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import TELL_APART, about


def open_region_captions(dataset: str, root: Path, split: str, data: DataConfig) -> RegionSource[Referent]:
    """`dataset` is one of REFER. Raises DatasetError; refs that cannot be used are listed in `.problems`."""
    referring = read_refer(root, dataset, split)
    images = [
        RegionImage(f"{dataset}_captions/{split}/image={image.image_id}", image.path, image.referents)
        for image in referring.images
    ]
    return RegionSource(images, list(referring.problems), data.expressions_per_image, _ask)


def _ask(image: RegionImage[Referent], drawn: list[Referent], rng: np.random.Generator) -> list[RegionTurn]:
    return [
        RegionTurn(
            question=about("<Prompt0>", TELL_APART[rng.integers(len(TELL_APART))]),
            answer=referent.sentences[rng.integers(len(referent.sentences))][1],
            prompts={0: referent.mask},
        )
        for referent in drawn
    ]


RECORDS = tuple(
    SourceRecord(
        name=f"{dataset}_captions",
        splits=("train",),  # the others can be opened too; `check` tries them as those of the dataset itself
        files=refer_files(dataset),
        sample="an image",
        turn="a region and an expression that refers to it",
        open=partial(open_region_captions, dataset),
        image_folders=COCO_2014_FOLDERS,
    )
    for dataset in NAMES
)
