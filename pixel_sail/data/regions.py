"""Regions as users draw them (mask, box, points, scribble), and such drawings made from masks for training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from pixel_sail.config import PromptConfig
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.templates import NOT_DRAWN
from pixel_sail.tokens import MAX_PROMPTS, PROMPTS, prompt_names
from pixel_sail.types import RLE, BadSample, Sample, Turn

PLACEHOLDER = "<region>"  # in a question to the Python API: the next region, whatever its number
SCRIBBLE_SHARE = 0.02  # width of a scribble, of the image's shorter side


@dataclass(frozen=True)
class Box:
    """Corners in pixels of the stored image; the region is all pixels that the box touches."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Points:
    """One or more (x, y) in pixels; each selects the pixel that contains it."""

    xy: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scribble:
    """A line through (x, y) in pixels; `width_px` None: 2 % of the image's shorter side."""

    xy: tuple[tuple[float, float], ...]
    width_px: float | None = None


@dataclass(frozen=True)
class OnImage:
    """A region on another image than the first, of a question about several."""

    image: int  # its number, from 0
    region: np.ndarray | Box | Points | Scribble


Region = np.ndarray | Box | Points | Scribble | OnImage  # an array is a mask (H, W) bool
Regions = Sequence[Region] | Mapping[int, Region]  # in order, or by K of <PromptK>


def draw_region(region: Region, size_hw: tuple[int, int], name: str) -> RLE:
    """The pixels of a region in an image of `size_hw`.

    Boxes and scribbles are cut at the border of the image. Raises BadSample, naming the region, if it is empty, of
    another size, not finite, or a point outside the image.
    """
    if isinstance(region, Box):
        mask = _box_mask(region, size_hw, name)
    elif isinstance(region, Points):
        mask = _points_mask(region.xy, size_hw, name)
    elif isinstance(region, Scribble):
        mask = _scribble_mask(region, size_hw, name)
    else:
        mask = np.asarray(region)
        if mask.shape != tuple(size_hw):
            raise BadSample(f"the region of {name} is {list(mask.shape)}, the image {list(size_hw)} pixels")
    if not mask.any():
        raise BadSample(f"the region of {name} is empty" + ("" if mask is region else " within the image"))
    return encode_mask(mask)


def draw_regions(regions: Regions, size_hw: tuple[int, int], *more_sizes_hw: tuple[int, int]) -> dict[int, RLE]:
    """The regions by the K of their <PromptK>; a sequence is <Prompt0>, <Prompt1>, ... in order.

    `size_hw` and `more_sizes_hw`: those of the images. Raises BadSample for more than 15 regions, for one on an image
    that is not there, and for bad ones (see `draw_region`).
    """
    numbered, sizes_hw = _numbered(regions), (size_hw, *more_sizes_hw)
    beyond = [k for k in numbered if not 0 <= k < MAX_PROMPTS]
    if len(numbered) > MAX_PROMPTS or beyond:
        problem = f"there is no <Prompt{beyond[0]}>" if isinstance(regions, Mapping) else f"{len(numbered)} regions"
        raise BadSample(f"{problem}: one question has at most {MAX_PROMPTS}, <Prompt0> to <Prompt{MAX_PROMPTS - 1}>")
    images = images_of(regions)
    for k, image in images.items():
        if not 0 <= image < len(sizes_hw):
            there = "there is one image" if len(sizes_hw) == 1 else f"there are {len(sizes_hw)}"
            raise BadSample(f"the region of {PROMPTS[k]} is on image {image}, counted from 0, and {there}")
    return {
        k: draw_region(region.region if k in images else region, sizes_hw[images.get(k, 0)], PROMPTS[k])
        for k, region in numbered.items()
    }


def images_of(regions: Regions) -> dict[int, int]:
    """K -> the number of the image that its region is on, of those that say so."""
    return {k: region.image for k, region in _numbered(regions).items() if isinstance(region, OnImage)}


def _numbered(regions: Regions) -> dict[int, Region]:
    return dict(regions) if isinstance(regions, Mapping) else dict(enumerate(regions))


def names_region(text: str) -> bool:
    """Whether a question says which region it is about."""
    return PLACEHOLDER in text or bool(prompt_names(text))


def name_regions(question: str, drawn: Collection[int]) -> str:
    """The question with every region named; `drawn`: the K of each <PromptK>.

    The question may name them itself, or have a `<region>` for each. If it names none, the names go in front of it.
    Raises BadSample if the number of placeholders differs from that of the regions.
    """
    places = question.count(PLACEHOLDER)
    if places and (places != len(drawn) or prompt_names(question)):
        raise BadSample(
            f"the question has {places} {PLACEHOLDER} and {len(drawn)} regions; name them one way: {question}"
        )
    for k in sorted(drawn) if places else ():
        question = question.replace(PLACEHOLDER, PROMPTS[k], 1)
    if drawn and not prompt_names(question):
        question = " ".join([*(PROMPTS[k] for k in sorted(drawn)), question])
    return question


def as_users_draw(sample: Sample, prompts: PromptConfig, rng: np.random.Generator) -> Sample:
    """The sample with its mask prompts turned into boxes, points and scribbles at the configured rates.

    At the rate `prompts.absent` it also gets a turn about a region that is not drawn, and an answer that says so. A
    sample without prompts is returned unchanged. All draws come from `rng`.
    """
    if not sample.prompts:
        return sample
    kinds = ("mask", "box", "point", "scribble")
    odds = np.array([getattr(prompts, kind) for kind in kinds])
    drawn = {k: imitate(rle, kinds[rng.choice(4, p=odds / odds.sum())], rng) for k, rle in sample.prompts.items()}
    sample = replace(sample, prompts=drawn)
    absent = [k for k in range(MAX_PROMPTS) if k not in drawn]
    if absent and rng.random() < prompts.absent:
        # In the words of the sample itself, so that only the missing region tells the difference.
        turn = sample.turns[rng.integers(len(sample.turns))]
        named = prompt_names(turn.question)
        if named:
            k = int(rng.choice(absent))
            question = turn.question.replace(PROMPTS[named[0]], PROMPTS[k])
            sample = replace(sample, turns=(*sample.turns, Turn(question, NOT_DRAWN.format(prompt=PROMPTS[k]))))
    return sample


def imitate(rle: RLE, kind: str, rng: np.random.Generator) -> RLE:
    """A mask as a user would mark it: the `mask` itself, its `box`, a `point` or a `scribble` inside it."""
    if kind == "mask":
        return rle
    mask = decode_mask(rle)
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return rle  # encoding reports the empty region
    if kind == "box":
        return draw_region(Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), mask.shape, kind)
    if kind == "point":
        i = rng.integers(len(ys))
        return draw_region(Points(((xs[i], ys[i]),)), mask.shape, kind)
    picked = rng.integers(len(ys), size=3)
    line = _scribble_mask(Scribble(tuple((xs[i] + 0.5, ys[i] + 0.5) for i in picked)), mask.shape, kind) & mask
    line[ys[picked[0]], xs[picked[0]]] = True
    return encode_mask(line)


def undrawn(question: str, drawn: Collection[int]) -> list[int]:
    """The K of every <PromptK> that the question names but that is not drawn, in order, each once."""
    return [k for k in dict.fromkeys(prompt_names(question)) if k not in drawn]


def _box_mask(box: Box, size_hw: tuple[int, int], name: str) -> np.ndarray:
    corners = np.array([box.x0, box.y0, box.x1, box.y1], dtype=float)
    if not np.isfinite(corners).all() or box.x1 <= box.x0 or box.y1 <= box.y0:
        raise BadSample(f"the box of {name} is {corners.tolist()}; a box is x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    mask = np.zeros(size_hw, dtype=bool)
    height, width = size_hw
    left, top = np.floor(corners[:2]).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(corners[2:]).clip(0, (width, height)).astype(int)
    mask[top:bottom, left:right] = True
    return mask


def _points_mask(xy: Sequence[tuple[float, float]], size_hw: tuple[int, int], name: str) -> np.ndarray:
    mask = np.zeros(size_hw, dtype=bool)
    for x, y in xy:
        if not (0 <= x < size_hw[1] and 0 <= y < size_hw[0]):
            raise BadSample(
                f"the point ({x}, {y}) of {name} is outside the image of {size_hw[1]} x {size_hw[0]} pixels"
            )
        mask[int(y), int(x)] = True
    return mask


def _scribble_mask(scribble: Scribble, size_hw: tuple[int, int], name: str) -> np.ndarray:
    points = np.array(scribble.xy, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise BadSample(f"the scribble of {name} is {scribble.xy}; it needs x, y of at least two points")
    width = SCRIBBLE_SHARE * min(size_hw) if scribble.width_px is None else scribble.width_px
    canvas = Image.new("1", (size_hw[1], size_hw[0]))
    ImageDraw.Draw(canvas).line([tuple(p) for p in points], fill=1, width=max(1, round(width)), joint="curve")
    return np.array(canvas, dtype=bool)
