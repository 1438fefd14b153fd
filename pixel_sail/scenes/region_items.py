"""Chooses questions and descriptions of the regions of one image, for all files about regions."""

import numpy as np

from pixel_sail.data.masks import encode_mask
from pixel_sail.scenes.conversations import (
    HALVES,
    image_turns,
    part_turns,
    several_object_turns,
    short_turns,
    text_turns,
    yes_no_turns,
)
from pixel_sail.scenes.descriptions import describe
from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.language import shuffled
from pixel_sail.scenes.multiple_choice import choose_questions
from pixel_sail.scenes.region_requests import choose_requests
from pixel_sail.scenes.types import ImageConversation, ObjectFacts, RegionConversation, RegionItems, Rng

SAM_CAPTIONS = 3  # objects an image
TEXT_ONLY = 20  # one image in so many brings a conversation that needs no image
SHORT_FORM = 5  # objects an image; short answers about many regions teach a model where a prompt points
MIN_PART_PX = 24


def choose_region_items(image: ImageFacts, owner: np.ndarray, index: int, rng: Rng) -> RegionItems:
    """`owner` (H, W): the object on each pixel, -1 for none. `index`: of the image."""
    facts = [image.facts(i) for i in image.indices]
    is_train = image.split == "train"
    return RegionItems(  # rng draws in this order
        facts=facts,
        pix2cap=[describe(image, of_object, rng) for of_object in facts],
        perbench=[describe(image, of_object, rng) for of_object in facts],
        multiple_choice=choose_questions(image, rng),
        requests=choose_requests(image, rng),
        sam=[(i, describe(image, facts[i], rng)) for i in sorted(_some(image, SAM_CAPTIONS, rng))],
        osprey=_osprey(image, facts, owner, rng) if is_train else {},
        llava=_llava(image, index, rng) if is_train else [],
    )


def _some(image: ImageFacts, count: int, rng: Rng) -> list[int]:
    return rng.permutation(len(image.objects))[:count].tolist()


def _llava(image: ImageFacts, index: int, rng: Rng) -> list[ImageConversation]:
    conversations = [ImageConversation(True, image_turns(image, rng))]
    if index % TEXT_ONLY == 0:
        conversations.append(ImageConversation(False, text_turns(rng)))
    return conversations


def _osprey(image: ImageFacts, facts: list[ObjectFacts], owner: np.ndarray, rng: Rng) -> dict[str, RegionConversation]:
    """Name of the file -> conversation; part_level is absent where no object has parts."""
    short, several, detailed, named = (
        _some(image, count, rng) for count in (SHORT_FORM, int(rng.integers(2, 4)), 1, 2)
    )
    conversations = {  # rng draws in this order
        "short_form": RegionConversation(short, short_turns(image, short, rng)),
        "conversation": RegionConversation(several, several_object_turns(image, several, rng)),
        "detail_description": RegionConversation(
            detailed, [("Describe <region1> in detail.", describe(image, facts[detailed[0]], rng))]
        ),
        "lvis_positive_negative": RegionConversation(named, yes_no_turns(image, named, rng)),
    }
    whole = [i for i in image.indices if image.objects[i].visible_share > 0.95]
    for i in shuffled(rng, whole):
        half = HALVES[rng.integers(len(HALVES))]
        part = half_of(owner == i, image.objects[i].bbox, half)
        if part.sum() >= MIN_PART_PX:
            conversations["part_level"] = RegionConversation([encode_mask(part)], part_turns(image, i, half, rng))
            break
    return conversations


def half_of(mask: np.ndarray, bbox: tuple[int, int, int, int], half: str) -> np.ndarray:
    """The pixels of (H, W) `mask` in one half of its bounding box."""
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
