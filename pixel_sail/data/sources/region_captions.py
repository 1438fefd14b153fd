"""RefCOCO, RefCOCO+ and RefCOCOg the other way round: from the region to an expression that tells it apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pixel_sail.data.sources.refer import NAMES as REFER_NAMES
from pixel_sail.data.sources.refer import read_refer
from pixel_sail.data.sources.referring import Referent
from pixel_sail.data.sources.region_turns import RegionImage, RegionSource, RegionTurn
from pixel_sail.data.templates import TELL_APART, about

NAMES = tuple(f"{name}_captions" for name in REFER_NAMES)


def open_region_captions(root: Path, name: str, split: str, count: int) -> RegionSource[Referent]:
    """Raises DatasetError; refs that cannot be used are listed in `.problems`."""
    referring = read_refer(root, name.removesuffix("_captions"), split)
    images = [RegionImage(f"{name}/{split}/image={i.image_id}", i.path, i.referents) for i in referring.images]
    return RegionSource(images, list(referring.problems), count, _ask)


def _ask(image: RegionImage[Referent], drawn: list[Referent], rng: np.random.Generator) -> list[RegionTurn]:
    return [
        RegionTurn(
            question=about("<Prompt0>", TELL_APART[rng.integers(len(TELL_APART))]),
            answer=referent.sentences[rng.integers(len(referent.sentences))][1],
            prompts={0: referent.mask},
        )
        for referent in drawn
    ]
