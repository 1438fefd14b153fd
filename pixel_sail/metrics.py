"""Scores of referring segmentation: accumulators that take one case at a time, and the overlap of two masks.

A prediction of None, a missing mask, counts as an empty one. Scores are in percent; None where no case defines them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion

from pixel_sail.data.masks import area_px, decode_mask, overlap_px
from pixel_sail.types import RLE

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOUNDARY_SHARE = 0.02  # width of a boundary, of the image's diagonal (Boundary IoU, arXiv 2103.16562)
SMALL_SHARE = 0.02  # a target of less than this share of the image's pixels is small


@dataclass
class ReferringScore:
    """RES: cIoU = sum of intersections / sum of unions, gIoU = mean IoU, Pr@X = share of cases with IoU >= X."""

    intersection_px: int = 0
    union_px: int = 0
    iou_sum: float = 0.0
    hits: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))
    cases: int = 0
    image_ids: set[int] = field(default_factory=set)

    def update(self, prediction: RLE | None, target: RLE | None, image_id: int) -> None:
        """One case; both masks at the size of the stored image. ValueError without a target."""
        if target is None:
            raise ValueError(
                f"image {image_id}: a referring case has a target; score no-target ones with GeneralizedScore"
            )
        intersection, union = overlap(prediction, target)
        case_iou = intersection / union if union else 0.0
        self.intersection_px += intersection
        self.union_px += union
        self.iou_sum += case_iou
        self.hits = [hits + (case_iou >= threshold) for hits, threshold in zip(self.hits, THRESHOLDS, strict=True)]
        self.cases += 1
        self.image_ids.add(image_id)

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
    """GRES, where an expression may match nothing (gRefCOCO; the rules of its evaluator, github.com/henghuiding/ReLA).

    gIoU: a no-target case counts 1 if the prediction is empty, else 0. cIoU: a no-target case adds the pixels of its
    prediction to the union. N-acc: the share of no-target cases that are predicted empty. T-acc: the share of the other
    cases that are not predicted empty.

    A prediction of fewer than `min_pixels` counts as empty. The evaluator has no such rule (0, the default); later code
    commonly takes 50 (GSVA, arXiv 2312.10103).
    """

    min_pixels: int = 0
    intersection_px: int = 0
    union_px: int = 0
    iou_sum: float = 0.0
    no_target: int = 0
    no_target_right: int = 0
    target: int = 0
    target_right: int = 0
    image_ids: set[int] = field(default_factory=set)

    def update(self, prediction: RLE | None, target: RLE | None, image_id: int) -> None:
        """One case; `target` None: nothing matches. Both masks at the size of the stored image."""
        empty = counts_as_empty(prediction, self.min_pixels)
        self.image_ids.add(image_id)
        if target is None:
            self.no_target += 1
            self.no_target_right += empty
            self.iou_sum += empty
            self.union_px += 0 if empty else area_px(prediction)
            return
        intersection, union = overlap(None if empty else prediction, target)
        self.target += 1
        self.target_right += not empty
        self.iou_sum += intersection / union if union else 0.0
        self.intersection_px += intersection
        self.union_px += union

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
    """What large objects hide in cIoU and gIoU: boundaries, and small targets. For cases with a target only.

    Boundary IoU of a case: the IoU of the boundaries of both masks, `BOUNDARY_SHARE` of the image's diagonal wide (see
    `boundary`). A target is small if it covers less than `SMALL_SHARE` of the image.
    """

    boundary_iou_sum: float = 0.0
    cases: int = 0
    small: ReferringScore = field(default_factory=ReferringScore)  # of the cases with a small target

    def update(self, prediction: RLE | None, target: RLE) -> None:
        """One case; both masks at the size of the stored image."""
        self.cases += 1
        self.boundary_iou_sum += 0.0 if prediction is None else boundary_iou(prediction, target)
        height, width = target["size"]
        if area_px(target) < SMALL_SHARE * height * width:
            self.small.update(prediction, target, image_id=0)  # images are not counted here

    def result(self) -> dict[str, Any]:
        """boundary_iou (mean over cases), small_ciou and small_giou in percent; small_cases as a count.

        `small_below`: the percentage of the image's pixels below which a target is small.
        """
        small = self.small.result()
        return {
            "boundary_iou": _percent(self.boundary_iou_sum, self.cases),
            "small_ciou": small["ciou"],
            "small_giou": small["giou"],
            "small_cases": small["cases"],
            "small_below": 100 * SMALL_SHARE,
        }


def overlap(prediction: RLE | None, target: RLE) -> tuple[int, int]:
    """(intersection, union) in pixels of two masks of one size; None is an empty mask."""
    return (0, area_px(target)) if prediction is None else overlap_px(prediction, target)


def iou(prediction: RLE | None, target: RLE) -> float:
    """IoU in 0..1 of two masks of one size; 0 where both are empty."""
    intersection, union = overlap(prediction, target)
    return intersection / union if union else 0.0


def counts_as_empty(prediction: RLE | None, min_pixels: int) -> bool:
    """Whether a prediction says that nothing matches: it has no pixel, or fewer than `min_pixels`."""
    area = 0 if prediction is None else area_px(prediction)
    return area == 0 or area < min_pixels


def boundary_iou(first: RLE, second: RLE) -> float:
    """Boundary IoU in 0..1 of two masks of one size (Cheng et al., CVPR 2021); 0 where both are empty."""
    distance_px = boundary_distance_px(first["size"])
    masks = np.stack([decode_mask(first), decode_mask(second)])
    rows, columns = (np.flatnonzero(masks.any(axis=(0, axis))) for axis in (2, 1))
    if not len(rows):
        return 0.0
    masks = masks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # erosion is slow; the rest is empty
    first_edge, second_edge = (boundary(mask, distance_px) for mask in masks)
    return float((first_edge & second_edge).sum() / (first_edge | second_edge).sum())


def boundary_distance_px(size_hw: Sequence[int]) -> int:
    """The width of a boundary in an image of this size, in pixels."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(*size_hw)))


def boundary(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """(H, W) bool -> its pixels that are at most `distance_px` from its contour, (H, W) bool.

    As in the authors' code: the mask without its erosion by a square of 2 distance_px + 1 pixels. Everything beyond the
    image is background, so the edge of the image is a contour too.
    """
    return mask & ~binary_erosion(mask, np.ones((3, 3), dtype=bool), iterations=distance_px)


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None
