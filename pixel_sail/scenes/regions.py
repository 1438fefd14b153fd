"""Which region items one image gets: everything that is asked about parts of it, as plain JSON-able data."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pixel_sail.scenes.ask import choose_mcqs
from pixel_sail.scenes.converse import (
    HALVES,
    Turn,
    part_turns,
    picture_turns,
    short_turns,
    talk,
    text_turns,
    yes_no_turns,
)
from pixel_sail.scenes.describe import describe
from pixel_sail.scenes.facts import Picture
from pixel_sail.scenes.language import shuffled
from pixel_sail.scenes.relate import choose_vres

Rng = np.random.Generator

SAM_CAPTIONS = 3  # objects an image
TEXT_ONLY = 20  # one image in so many brings a conversation without an image
SHORT_FORM = 5  # objects an image: what they are asked for is how models learn to look where they are pointed
MIN_PART_PX = 24


def choose_regions(picture: Picture, owner: np.ndarray, index: int, rng: Rng) -> dict[str, Any]:
    """Items refer to objects by their index. ``owner`` (H, W): the object on each pixel, -1 for none."""
    facts = [picture.facts(i) for i in picture.indices]
    items = {
        "facts": facts,
        "captions": {name: [describe(picture, one, rng) for one in facts] for name in ("pix2cap", "perbench")},
        "mcqs": choose_mcqs(picture, rng),
        "vres": choose_vres(picture, rng),
        "sam": [(i, describe(picture, facts[i], rng)) for i in sorted(_some(picture, SAM_CAPTIONS, rng))],
    }
    if picture.split == "train":
        items["osprey"] = _osprey(picture, facts, owner, rng)
        items["llava"] = [{"picture": True, "turns": picture_turns(picture, rng)}]
        if index % TEXT_ONLY == 0:
            items["llava"].append({"picture": False, "turns": text_turns(rng)})
    return items


def _some(picture: Picture, count: int, rng: Rng) -> list[int]:
    return rng.permutation(len(picture.objects))[:count].tolist()


def _osprey(picture: Picture, facts: list[dict], owner: np.ndarray, rng: Rng) -> dict[str, dict[str, Any]]:
    """Name of the file -> {regions: object indices or RLEs, turns}; part_level is absent where no object has parts."""
    few, more, one, two = (_some(picture, count, rng) for count in (SHORT_FORM, int(rng.integers(2, 4)), 1, 2))
    entries = {
        "short_form": _entry(few, short_turns(picture, few, rng)),
        "conversation": _entry(more, talk(picture, more, rng)),
        "detail_description": _entry(one, [("Describe <region1> in detail.", describe(picture, facts[one[0]], rng))]),
        "lvis_positive_negative": _entry(two, yes_no_turns(picture, two, rng)),
    }
    whole = [i for i in picture.indices if picture.objects[i]["visible_share"] > 0.95]
    for i in shuffled(rng, whole):
        half = HALVES[rng.integers(len(HALVES))]
        part = _half(owner == i, picture.objects[i]["bbox"], half)
        if part.sum() >= MIN_PART_PX:
            rle = coco_mask.encode(np.asfortranarray(part, np.uint8))
            region = {"size": list(owner.shape), "counts": rle["counts"].decode("ascii")}
            entries["part_level"] = _entry([region], part_turns(picture, i, half, rng))
            break
    return entries


def _entry(regions: list[Any], turns: list[Turn]) -> dict[str, Any]:
    return {"regions": regions, "turns": turns}


def _half(mask: np.ndarray, bbox: list[int], half: str) -> np.ndarray:
    """The pixels of (H, W) ``mask`` in one half of its bounding box (x, y, width, height)."""
    x, y, width, height = bbox
    middle_x, middle_y = x + width // 2, y + height // 2
    part = np.zeros_like(mask)
    window = {
        "upper": np.s_[:middle_y],
        "lower": np.s_[middle_y:],
        "left": np.s_[:, :middle_x],
        "right": np.s_[:, middle_x:],
    }[half]
    part[window] = mask[window]
    return part
