"""A closer look: a crop around a small object, beside the whole image, with the mask on the crop.

Prediction takes the crop around a mask that it has found (`Predictor.zoomed`). Training draws crops around targets
(`as_zoomed`), so that the object lies anywhere in them and at any of the sizes that prediction meets.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, encode_mask, resize_nearest
from pixel_sail.data.turn_masks import turns_with_masks
from pixel_sail.types import BadSample, Sample

Box = tuple[int, int, int, int]  # pixels: left, top, one past the right, one past the bottom

# The side of a crop, in longer sides of the box around the object. Training draws it from the range.
FACTOR, FACTORS = 2.5, (1.5, 4.0)
# By how much a crop enlarges. With less there is little to gain; with more there is nothing to see.
LEAST_ZOOM, LARGEST_ZOOM = 1.5, 8.0
MAX_SIDE_PX = 1024  # of an enlarged crop


def zoom_box(mask: np.ndarray) -> Box | None:
    """The crop around what a mask (H, W) bool shows; None where that is nothing, or too large for a closer look."""
    around = _around(mask)
    side = None if around is None else _side(around, mask.shape, FACTOR)
    if side is None:
        return None
    first, last = _corners(around, side, mask.shape)
    middle = [(start + stop - side) // 2 for start, stop in ((around[0], around[2]), (around[1], around[3]))]
    return _square(np.clip(middle, first, last), side, mask.shape)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The crop, enlarged: its longer side is that of the image, MAX_SIDE_PX at most."""
    width, height = _enlarged(box, image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def to_crop(mask: np.ndarray, box: Box) -> np.ndarray:
    """A mask (H, W) bool of an image as one of its `crop`."""
    left, top, right, bottom = box
    width, height = _enlarged(box, mask.shape[::-1])
    return resize_nearest(mask[top:bottom, left:right], (height, width))


def from_crop(mask: np.ndarray, box: Box, size_hw: tuple[int, int]) -> np.ndarray:
    """A mask of a `crop`, bool or of probabilities, as one of the image; 0 outside the crop."""
    left, top, right, bottom = box
    whole = np.zeros(size_hw, dtype=mask.dtype)
    whole[top:bottom, left:right] = resize_nearest(mask, (bottom - top, right - left))
    return whole


def as_zoomed(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """At the rate `share`, the sample as one of two images: the whole, and a crop around a small target of a turn.

    All masks are then on the crop. Turns with a target that is not all in the crop are left out; questions, regions and
    answers stay. A sample without a small target is returned unchanged. All draws come from `rng`.
    """
    if share == 0 or rng.random() >= share or len(sample.images) != 1:
        return sample
    masks, turns = [decode_mask(rle) for rle in sample.masks], turns_with_masks(sample)
    if not masks or sum(len(own) for _, own in turns) != len(masks):  # the encoder reports it
        return sample
    boxes = [_around(mask) for mask in masks]
    targets = [_union([boxes[n] for n in own if boxes[n]]) for _, own in turns]
    box = _drawn_box([target for target in targets if target], masks[0].shape, rng)
    image = None if box is None else _load(sample)
    if image is None or any(mask.shape != (image.height, image.width) for mask in masks):  # likewise
        return sample
    kept = [(turn, own) for turn, own in turns if all(boxes[n] and _inside(boxes[n], box) for n in own)]
    shown = [n for _, own in kept for n in own]
    file = io.BytesIO()
    crop(image, box).save(file, "PNG", compress_level=1)
    return replace(
        sample,
        turns=tuple(turn for turn, _ in kept),
        masks=tuple(encode_mask(to_crop(masks[n], box)) for n in shown),
        more_images=(file.getvalue(),),
        mask_images=(1,) * len(shown),
    )


def _drawn_box(targets: list[Box], size_hw: tuple[int, int], rng: np.random.Generator) -> Box | None:
    """A crop around one of the targets; None where none of them is small."""
    factor = math.exp(rng.uniform(*map(math.log, FACTORS)))
    sides = {target: _side(target, size_hw, factor) for target in targets}
    small = [target for target, side in sides.items() if side is not None]
    if not small:
        return None
    target = small[rng.integers(len(small))]
    first, last = _corners(target, sides[target], size_hw)
    return _square(rng.integers(first, last + 1), sides[target], size_hw)


def _load(sample: Sample) -> Image.Image:
    try:
        return load_image(sample.image)
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None


def _around(mask: np.ndarray) -> Box | None:
    """The box around a mask (H, W) bool; None without a pixel."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _union(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _side(around: Box, size_hw: tuple[int, int], factor: float) -> int | None:
    """Pixels of the side of the crop around a box; None where that is too large."""
    longest, whole = max(around[2] - around[0], around[3] - around[1]), max(size_hw)
    side = max(math.ceil(factor * longest), math.ceil(whole / LARGEST_ZOOM))
    return side if side * LEAST_ZOOM <= whole else None


def _corners(around: Box, side: int, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last left and top, (2,) each, at which a crop holds the box and lies in the image."""
    start, stop = np.array(around[:2]), np.array(around[2:])
    whole = np.array(size_hw[::-1])
    sides = np.minimum(side, whole)
    return np.maximum(stop - sides, 0), np.minimum(start, whole - sides)


def _square(corner: np.ndarray, side: int, size_hw: tuple[int, int]) -> Box:
    """The crop at a left and top; cut where the image is narrower than its side."""
    left, top = map(int, corner)
    return left, top, left + min(side, size_hw[1]), top + min(side, size_hw[0])


def _inside(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _enlarged(box: Box, size_wh: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels of the crop of an image of `size_wh`."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = max(1.0, min(max(size_wh), MAX_SIDE_PX) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
