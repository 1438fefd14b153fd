"""Two images of one scene that differ in one property of one object: a pair of PixMMVP."""

from dataclasses import dataclass, replace

import numpy as np

from pixel_sail.scenes.descriptions import COUNTS
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.layout import (
    MIN_AREA_SHARE,
    MIN_VISIBLE_SHARE,
    SPLIT_CYCLE,
    PlacedObject,
    Scene,
    draw_scene,
    windows,
)
from pixel_sail.scenes.outline import coco_polygons
from pixel_sail.scenes.render import render
from pixel_sail.scenes.sprite import Sprite, draw_sprite
from pixel_sail.scenes.two_option_questions import (
    TOPICS,
    TOTAL,
    Claim,
    other_colour,
    other_kind,
    other_texture,
    question_about,
    side_of,
)
from pixel_sail.scenes.types import Rng

Polygons = list[list[float]]  # [[x, y, x, y, ...], ...] in pixels

_CYCLE = (*TOPICS * 3, TOTAL, "colour")  # the topics of the pairs: of every 20 one is about no object
_VAL = SPLIT_CYCLE.index("val")  # as in training, without the pairs of colour and kind that testB keeps
_TRIES = 200


@dataclass(frozen=True)
class PairImage:
    pixels: np.ndarray  # (height, width, 3) uint8
    polygons: Polygons  # of all objects that the expression names


@dataclass(frozen=True)
class Pair:
    question: str
    options: tuple[str, str]
    rights: tuple[int, int]  # index of the right option for each image
    expression: str | None  # None where the question is about no object
    images: tuple[PairImage, PairImage]


@dataclass(frozen=True)
class _Change:
    """The things of the two images, from back to front, and which of them the expression names."""

    claim: Claim  # right in the first image, wrong in the second
    expression: str | None
    things: tuple[list[PlacedObject], list[PlacedObject]]
    targets: tuple[list[int], list[int]]


def draw_pair(number: int, seed: int, long_side_px: int, style: str = "day") -> Pair:
    """All randomness comes from (seed, number). Draws again until a scene allows the topic of this number."""
    rng, topic = np.random.default_rng([seed, number, 4]), _CYCLE[number % len(_CYCLE)]
    while True:
        scene = draw_scene(_VAL, long_side_px, rng)
        change = _change(topic, scene, rng)
        scenes = [_scene(scene, things) for things in change.things] if change else []
        if change is None or not all(map(_visible, scenes)):
            continue
        masks = [np.isin(variant.owner, indices) for variant, indices in zip(scenes, change.targets, strict=True)]
        polygons = [coco_polygons(mask) if mask.any() else [] for mask in masks]
        if None in polygons:  # a mask with a hole, which polygons cannot describe
            continue
        question = question_about(topic, change.claim, rng)
        render_seed = int(rng.integers(2**32))  # the same background and light in both images
        images = [
            PairImage(render(variant, np.random.default_rng(render_seed), style), outline or [])
            for variant, outline in zip(scenes, polygons, strict=True)
        ]
        rights = (question.right, 1 - question.right)
        i, j = (1, 0) if rng.integers(2) else (0, 1)
        return Pair(
            question.question, question.options, (rights[i], rights[j]), change.expression, (images[i], images[j])
        )


def _change(topic: str, scene: Scene, rng: Rng) -> _Change | None:
    """Change one thing that its kind alone names (for the topic kind: its colour alone).

    None where that is impossible.
    """
    kinds = [thing.kind for thing in scene.things]
    colours = [thing.colour for thing in scene.things]
    for i in rng.permutation(len(kinds)).tolist():
        thing, others = scene.things[i], [other for j, other in enumerate(scene.things) if j != i]
        last, kind, colour = len(others), thing.kind, thing.colour
        single = (colours.count(colour) if topic == "kind" else kinds.count(kind)) == 1
        if topic in ("colour", "texture", "kind", "side"):
            changed = _changed(topic, thing, scene, rng) if single else None
            if changed is None:
                continue
            name, noun = (colour, f"{colour} thing") if topic == "kind" else (kind, kind)
            claim = Claim(name, *_values(topic, thing, changed, scene))
            thing = _widened(thing, changed.sprite)
            return _Change(claim, f"the {noun}", ([*others, thing], [*others, changed]), ([last], [last]))
        gone = ([*others, thing], [*others, _gone(thing)])
        if topic == "presence" and single and last >= 2:
            return _Change(Claim(kind, "yes", "no"), f"the {kind}", gone, ([last], []))
        if topic == "count" and kinds.count(kind) == 2:
            twin = next(j for j, other in enumerate(others) if other.kind == kind)
            return _Change(Claim(kind, "two", "one"), f"every {kind}", gone, ([twin, last], [twin]))
        if topic == TOTAL and last >= 2:
            return _Change(Claim("", COUNTS[last + 1], COUNTS[last]), None, gone, ([], []))
    return None


def _changed(topic: str, thing: PlacedObject, scene: Scene, rng: Rng) -> PlacedObject | None:
    """The thing with another colour, texture, kind or place; None where that is impossible."""
    if topic == "colour":
        return replace(thing, colour=other_colour(thing.kind, thing.colour, rng))
    if topic == "texture":
        fits = KINDS[thing.kind].solid and thing.size_class != "small"
        return replace(thing, texture=other_texture(thing.texture, rng)) if fits else None
    if topic == "side":
        return _moved(thing, scene, rng)
    kind = other_kind(thing.kind, thing.colour, rng)
    if kind in [other.kind for other in scene.things] or (thing.texture != "plain" and not KINDS[kind].solid):
        return None
    sprite = draw_sprite(kind, thing.size_px, rng)
    return replace(_widened(thing, sprite), kind=kind, sprite=_padded(sprite, thing.sprite))


def _gone(thing: PlacedObject) -> PlacedObject:
    """An invisible thing that is painted with as many random numbers: the rest looks the same as with the thing."""
    shape = thing.sprite.cover.shape
    invisible = Sprite(np.zeros(shape, bool), np.zeros(shape, np.float32), np.ones(shape, np.float32))
    return replace(thing, sprite=invisible)


def _widened(thing: PlacedObject, other: Sprite) -> PlacedObject:
    """The thing where it was, its sprite padded to the size of the other: painting draws numbers for every pixel."""
    sprite = _padded(thing.sprite, other)
    more_y, more_x = ((new - old) // 2 for new, old in zip(sprite.cover.shape, thing.sprite.cover.shape, strict=True))
    return replace(thing, sprite=sprite, top=thing.top - more_y, left=thing.left - more_x)


def _padded(sprite: Sprite, other: Sprite) -> Sprite:
    """The sprite with empty margins, at least as large as the other. All sides of sprites are even."""
    sizes = zip(sprite.cover.shape, other.cover.shape, strict=True)
    margins = [(max(0, theirs - mine) // 2,) * 2 for mine, theirs in sizes]
    cover, alpha = np.pad(sprite.cover, margins), np.pad(sprite.alpha, margins)
    return Sprite(cover, alpha, np.pad(sprite.shade, margins, constant_values=1.0))


def _moved(thing: PlacedObject, scene: Scene, rng: Rng) -> PlacedObject | None:
    """The thing on the other side of the image, wholly inside; None where no such place was drawn."""
    height, width = thing.sprite.cover.shape
    side = side_of(_centre_x(thing) / scene.width)
    if side is None or width > scene.width or height > scene.height:
        return None
    for _ in range(_TRIES):
        top, left = (int(rng.integers(room + 1)) for room in (scene.height - height, scene.width - width))
        moved = replace(thing, top=top, left=left)
        if side_of(_centre_x(moved) / scene.width) not in (None, side):
            return moved
    return None


def _values(topic: str, first: PlacedObject, second: PlacedObject, scene: Scene) -> tuple[str, str]:
    if topic == "side":
        before, after = (side_of(_centre_x(thing) / scene.width) or "" for thing in (first, second))
        return before, after
    return getattr(first, topic), getattr(second, topic)


def _centre_x(thing: PlacedObject) -> float:
    """Mean x of its pixels, those outside the image included."""
    return thing.left + float(np.nonzero(thing.sprite.cover)[1].mean()) + 0.5


def _scene(scene: Scene, things: list[PlacedObject]) -> Scene:
    """The same image with other things, from back to front."""
    changed = Scene(scene.width, scene.height, scene.split, things, np.full_like(scene.owner, -1))
    for i, thing in enumerate(things):
        in_image, in_sprite = windows(changed, thing)
        changed.owner[in_image][thing.sprite.cover[in_sprite]] = i
    return changed


def _visible(scene: Scene) -> bool:
    """Whether every object is as visible as `draw_scene` requires."""
    for i, thing in enumerate(scene.things):
        seen, full = int((scene.owner == i).sum()), int(thing.sprite.cover.sum())
        if full and seen < max(MIN_VISIBLE_SHARE * full, MIN_AREA_SHARE * scene.owner.size):
            return False
    return True
