"""Scores of referring segmentation: accumulators that take one case at a time and can be merged across processes.

A prediction of None, a missing mask, counts as an empty one. Scores are in percent; None where no case defines them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pixel_sail.data.masks import area_px, decode_mask, overlap_px
from pixel_sail.types import RLE

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
MIN_PIXELS = 50  # a generalized prediction below counts as empty: common practice since GSVA (arXiv 2312.10103)
BOUNDARY_SHARE = 0.02  # width of a boundary, of the image's diagonal (Boundary IoU, arXiv 2103.16562)
SMALL_SHARE = 0.02  # a target of less than this share of the image's pixels is small


@dataclass
class ReferringScore:
    """RES, one target a case: cIoU = sum of intersections / sum of unions, gIoU = mean IoU, Pr@X = share with IoU >= X.

    `state()` is a dict of numbers and lists of numbers; `ReferringScore(**state)` is the score again.
    """

    intersection_px: int = 0
    union_px: int = 0
    iou_sum: float = 0.0
    hits: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))
    cases: int = 0
    image_ids: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.image_ids = set(self.image_ids)  # a state has them as a list

    def update(self, prediction: RLE | None, target: RLE | None, image_id: int) -> None:
        """One case; both masks at the size of the stored image. ValueError without a target."""
        if target is None:
            raise ValueError(
                f"image {image_id}: a referring case has a target; score no-target ones with GeneralizedScore"
            )
        intersection, union = (0, area_px(target)) if prediction is None else overlap_px(prediction, target)
        iou = intersection / union if union else 0.0
        self.intersection_px += intersection
        self.union_px += union
        self.iou_sum += iou
        self.hits = [hits + (iou >= threshold) for hits, threshold in zip(self.hits, THRESHOLDS, strict=True)]
        self.cases += 1
        self.image_ids.add(image_id)

    def merge(self, other: ReferringScore) -> None:
        """Adds the cases of another process."""
        self.intersection_px += other.intersection_px
        self.union_px += other.union_px
        self.iou_sum += other.iou_sum
        self.hits = [mine + theirs for mine, theirs in zip(self.hits, other.hits, strict=True)]
        self.cases += other.cases
        self.image_ids |= other.image_ids

    def state(self) -> dict[str, Any]:
        return vars(self) | {"image_ids": sorted(self.image_ids)}

    def result(self) -> dict[str, Any]:
        """ciou, giou, pr@0.5 ... pr@0.9 in percent; cases and images as counts."""
        precisions = {f"pr@{x}": _percent(hits, self.cases) for x, hits in zip(THRESHOLDS, self.hits, strict=True)}
        return {
            "ciou": _percent(self.intersection_px, self.union_px),
            "giou": _percent(self.iou_sum, self.cases),
            **precisions,
            "cases": self.cases,
            "images": len(self.image_ids),
        }


@dataclass
class GeneralizedScore:
    """GRES, where nothing may match (gRefCOCO; the rules of its evaluator, github.com/henghuiding/ReLA).

    gIoU: a no-target case gives 1 if the prediction is empty, else 0. cIoU: it adds nothing if the prediction is empty,
    else its pixels to the union. N-acc: share of the no-target cases predicted empty; T-acc: of the others, not empty.
    A prediction under `min_pixels` counts as empty (0: off). `GeneralizedScore(**state)` restores a `state()`.
    """

    min_pixels: int = MIN_PIXELS
    intersection_px: int = 0
    union_px: int = 0
    iou_sum: float = 0.0
    no_target: int = 0
    no_target_right: int = 0
    target: int = 0
    target_right: int = 0
    image_ids: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.image_ids = set(self.image_ids)  # a state has them as a list

    def update(self, prediction: RLE | None, target: RLE | None, image_id: int) -> None:
        """One case; `target` None: nothing matches. Both masks at the size of the stored image."""
        area = 0 if prediction is None else area_px(prediction)
        empty = counts_as_empty(prediction, self.min_pixels)
        self.image_ids.add(image_id)
        if target is None:
            self.no_target += 1
            self.no_target_right += empty
            self.iou_sum += empty
            self.union_px += 0 if empty else area
            return
        intersection, union = (0, area_px(target)) if empty else overlap_px(prediction, target)
        self.target += 1
        self.target_right += not empty
        self.iou_sum += intersection / union if union else 0.0
        self.intersection_px += intersection
        self.union_px += union

    def merge(self, other: GeneralizedScore) -> None:
        """Adds the cases of another process; ValueError when it counted by another `min_pixels`."""
        if self.min_pixels != other.min_pixels:
            raise ValueError(f"cannot merge scores of min_pixels {self.min_pixels} and {other.min_pixels}")
        for name in (
            "intersection_px",
            "union_px",
            "iou_sum",
            "no_target",
            "no_target_right",
            "target",
            "target_right",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.image_ids |= other.image_ids

    def state(self) -> dict[str, Any]:
        return vars(self) | {"image_ids": sorted(self.image_ids)}

    def result(self) -> dict[str, Any]:
        """giou, ciou, n_acc, t_acc in percent; cases, no_target_cases, images as counts; the min_pixels in force."""
        cases = self.target + self.no_target
        return {
            "giou": _percent(self.iou_sum, cases),
            "ciou": _percent(self.intersection_px, self.union_px),
            "n_acc": _percent(self.no_target_right, self.no_target),
            "t_acc": _percent(self.target_right, self.target),
            "cases": cases,
            "no_target_cases": self.no_target,
            "images": len(self.image_ids),
            "min_pixels": self.min_pixels,
        }


@dataclass
class DetailScore:
    """What cIoU and gIoU hide behind large objects: boundaries, and small targets apart. Cases with a target only.

    Boundary IoU of a case: IoU of the pixels of each mask within `BOUNDARY_SHARE` of the diagonal of its own contour
    (see `boundary`). A target is small below `SMALL_SHARE` of the image. `DetailScore(**state)` restores a `state()`.
    """

    boundary_iou_sum: float = 0.0
    cases: int = 0
    small_intersection_px: int = 0
    small_union_px: int = 0
    small_iou_sum: float = 0.0
    small_cases: int = 0

    def update(self, prediction: RLE | None, target: RLE) -> None:
        """One case; both masks at the size of the stored image."""
        self.cases += 1
        self.boundary_iou_sum += 0.0 if prediction is None else boundary_iou(prediction, target)
        area, (height, width) = area_px(target), target["size"]
        if area >= SMALL_SHARE * height * width:
            return
        intersection, union = (0, area) if prediction is None else overlap_px(prediction, target)
        self.small_cases += 1
        self.small_intersection_px += intersection
        self.small_union_px += union
        self.small_iou_sum += intersection / union if union else 0.0

    def merge(self, other: DetailScore) -> None:
        """Adds the cases of another process."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def result(self) -> dict[str, Any]:
        """boundary_iou, the mean over cases; small_ciou and small_giou in percent; small_cases; small_below in force.

        `small_below` is a percentage as well: of the image's pixels.
        """
        return {
            "boundary_iou": _percent(self.boundary_iou_sum, self.cases),
            "small_ciou": _percent(self.small_intersection_px, self.small_union_px),
            "small_giou": _percent(self.small_iou_sum, self.small_cases),
            "small_cases": self.small_cases,
            "small_below": 100 * SMALL_SHARE,
        }


def counts_as_empty(prediction: RLE | None, min_pixels: int) -> bool:
    """Whether a generalized prediction says that nothing matches: no pixel, or fewer than `min_pixels`."""
    area = 0 if prediction is None else area_px(prediction)
    return area == 0 or area < min_pixels


def boundary_iou(first: RLE, second: RLE) -> float:
    """Boundary IoU in 0..1 of two masks of one size (Cheng et al., CVPR 2021); 0 where both are empty."""
    distance_px = boundary_distance_px(first["size"])
    masks = np.stack([decode_mask(first), decode_mask(second)])
    rows, columns = (np.flatnonzero(masks.any(axis=(0, axis))) for axis in (2, 1))
    if not len(rows):
        return 0.0
    masks = masks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # outside there is nothing to erode
    a, b = (boundary(mask, distance_px) for mask in masks)
    return float((a & b).sum() / (a | b).sum())


def boundary_distance_px(size_hw: Sequence[int]) -> int:
    """How far a boundary reaches in an image of this size."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(*size_hw)))


def boundary(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """(H, W) bool -> its pixels that are no further than `distance_px` from its contour, (H, W) bool.

    As in the authors' code: the mask without its erosion by a square of 2 distance_px + 1 pixels, where all beyond the
    image is background, so that the edge of the image is a contour too.
    """
    side, inner = 2 * distance_px + 1, mask
    for axis in (0, 1):
        margins = [(0, 0), (0, 0)]
        margins[axis] = (distance_px + 1, distance_px)
        sums = np.pad(inner.astype(np.int32), margins).cumsum(axis)
        ends, starts = np.split(sums, [side], axis)[1], np.split(sums, [-side], axis)[0]
        inner = ends - starts == side
    return mask & ~inner


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None
