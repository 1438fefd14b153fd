"""Which objects stand where: their order in depth and their visible masks."""

from dataclasses import dataclass

import numpy as np

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.sprite import Sprite, draw_sprite
from pixel_sail.scenes.types import Rng

ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))
# longer side of the object as a share of the image's short side
SIZES = {"small": (0.14, 0.22), "medium": (0.27, 0.36), "large": (0.45, 0.64)}
SIZE_ODDS = (0.16, 0.4, 0.44)
MIN_VISIBLE_SHARE = 0.5  # of the pixels of an object, those outside the image included
MIN_AREA_SHARE = 0.0016  # of the image
SPLIT_CYCLE = ("train",) * 4 + ("val",) + ("train",) * 4 + ("testA",) + ("train",) * 4 + ("testB",)

_KINDS, _COLOURS = list(KINDS), list(COLOURS)
_ALLOWED = [(kind, colour) for kind in _KINDS for colour in _COLOURS if (kind, colour) not in HELD_OUT]


@dataclass
class PlacedObject:
    """An object as it is drawn. `top`, `left`: pixel of the image at the sprite's corner; may be negative."""

    kind: str
    colour: str
    texture: str
    size_class: str
    size_px: float
    sprite: Sprite
    top: int = 0
    left: int = 0


@dataclass
class Scene:
    """`things` from back to front. `owner` (height, width) int8: the index of the topmost thing of a pixel, or -1."""

    width: int
    height: int
    split: str
    things: list[PlacedObject]
    owner: np.ndarray


def split_of(index: int) -> str:
    """12 of 15 images are train; the others are val, testA and testB in turn, for any number of images."""
    return SPLIT_CYCLE[index % len(SPLIT_CYCLE)]


def draw_scene(index: int, long_side_px: int, rng: Rng) -> Scene:
    """The objects of image `index`: 3 to 8, none hidden or tiny. Draws again until at least three fit."""
    split = split_of(index)
    across, down = ASPECTS[rng.integers(len(ASPECTS))]
    unit = long_side_px / max(across, down)
    width, height = round(across * unit), round(down * unit)
    while True:
        owner = np.full((height, width), -1, np.int8)
        things: list[PlacedObject] = []
        for kind, colour in _choose_pairs(split, rng):
            _add(things, owner, kind, colour, rng)
        least = 4 if split == "testA" else 3
        if len(things) >= least and (split != "testA" or _crowded(things)) and (split != "testB" or _has_new(things)):
            return Scene(width, height, split, things, owner)


def _crowded(things: list[PlacedObject]) -> bool:
    kinds = [thing.kind for thing in things]
    return max(kinds.count(kind) for kind in kinds) >= 3


def _has_new(things: list[PlacedObject]) -> bool:
    return any((thing.kind, thing.colour) in HELD_OUT for thing in things)


def _choose_pairs(split: str, rng: Rng) -> list[tuple[str, str]]:
    """Kinds and colours from small pools, so that they repeat and one attribute alone is often not enough."""
    count = int(rng.integers(5, 9)) if split == "testA" else int(rng.integers(3, 9))
    kinds = rng.choice(_KINDS, max(2, round(count * rng.uniform(0.45, 0.9))), replace=False).tolist()
    colours = rng.choice(_COLOURS, max(3, round(count * rng.uniform(0.6, 0.9))), replace=False).tolist()
    pool = [(k, c) for k, c in _ALLOWED if k in kinds and c in colours]
    pairs = [pool[i] for i in rng.integers(len(pool), size=count)]
    if split == "testA":
        crowd = [(k, c) for k, c in _ALLOWED if k == kinds[0]]
        pairs[: min(4, count - 1)] = [crowd[i] for i in rng.integers(len(crowd), size=min(4, count - 1))]
    if split == "testB":
        new = sorted(HELD_OUT)
        share = max(1, round(count * 0.5))
        pairs[:share] = [new[i] for i in rng.integers(len(new), size=share)]
    return [pairs[i] for i in rng.permutation(count)]


def _add(things: list[PlacedObject], owner: np.ndarray, kind: str, colour: str, rng: Rng) -> None:
    """Place one more object over the others. Tries smaller sizes where there is no room, and then gives up."""
    short = min(owner.shape)
    first = int(rng.choice(3, p=SIZE_ODDS))
    names = list(SIZES)[: first + 1][::-1]
    for size_class in names:
        # a texture needs some pixels to be seen
        textured = KINDS[kind].solid and size_class != "small" and rng.random() < 0.55
        texture = TEXTURES[rng.integers(1, 4)] if textured else "plain"
        size_px = rng.uniform(*SIZES[size_class]) * short
        thing = PlacedObject(kind, colour, texture, size_class, size_px, draw_sprite(kind, size_px, rng))
        if _place(thing, things, owner, rng):
            return


def _place(thing: PlacedObject, things: list[PlacedObject], owner: np.ndarray, rng: Rng) -> bool:
    """Try random places until every object stays visible enough; on success write `owner` and append the thing."""
    height, width = owner.shape
    cover = thing.sprite.cover
    full = int(cover.sum())
    areas = [int(other.sprite.cover.sum()) for other in things]
    may_overlap = rng.random() < 0.4
    for _ in range(14):
        spill = 0.12 if rng.random() < 0.12 else 0.0
        y = rng.integers(-int(spill * cover.shape[0]), max(1, height - int((1 - spill) * cover.shape[0])) + 1)
        x = rng.integers(-int(spill * cover.shape[1]), max(1, width - int((1 - spill) * cover.shape[1])) + 1)
        in_image, in_sprite = _windows(owner.shape, cover.shape, int(y), int(x))
        new = np.zeros_like(owner, bool)
        new[in_image] = cover[in_sprite]
        seen = int(new.sum())
        if seen < max(0.8 * full, MIN_AREA_SHARE * owner.size):
            continue
        hit = np.bincount(owner[new] + 1, minlength=len(things) + 1)[1:]
        if not may_overlap and hit.sum() > 0:
            continue
        left = [int((owner == i).sum()) - int(hit[i]) for i in range(len(things))] if hit.sum() else []
        if any(n < max(MIN_VISIBLE_SHARE * a, MIN_AREA_SHARE * owner.size) for n, a in zip(left, areas, strict=False)):
            continue
        thing.top, thing.left = int(y), int(x)
        owner[new] = len(things)
        things.append(thing)
        return True
    return False


def _windows(outer: tuple[int, int], inner: tuple[int, int], top: int, left: int) -> tuple[tuple, tuple]:
    """The slices of an image of size `outer` and of a sprite of size `inner` that lie on each other."""
    y0, y1 = max(0, top), min(outer[0], top + inner[0])
    x0, x1 = max(0, left), min(outer[1], left + inner[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def windows(scene: Scene, thing: PlacedObject) -> tuple[tuple, tuple]:
    """The slices of the image that a thing covers, and the slices of its sprite that lie there."""
    return _windows(scene.owner.shape, thing.sprite.cover.shape, thing.top, thing.left)
