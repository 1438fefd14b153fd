"""Why cIoU of referring expressions is low: another object, an inexact edge, pixels beside it. The shares add up.

Every pixel of a union that is not in the intersection has exactly one cause, so cIoU and the shares add up to 100:

    other     the mask fits another annotated object of the image better, or there is no mask: all pixels of the case
    edge      within `BOUNDARY_SHARE` of the image's diagonal from the target's contour, on either side of it
    also      further out, on other annotated objects
    ground    further out, on no annotated object
    inside    missing pixels inside the target
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask
from pixel_sail.data.sources import refer
from pixel_sail.data.sources.cases import Case
from pixel_sail.data.sources.coco import CocoInstances
from pixel_sail.evaluate.benchmark import Line
from pixel_sail.evaluate.topics import expression_kinds
from pixel_sail.metrics import boundary, boundary_distance_px, iou, overlap
from pixel_sail.types import RLE

CAUSES = ("other", "edge", "also", "ground", "inside")


@dataclass
class MaskErrors:
    """Pixels summed over cases. `right`: cases whose mask fits no other object of the image better than the target."""

    cases: int = 0
    right: int = 0
    intersection_px: int = 0
    union_px: int = 0
    right_intersection_px: int = 0
    right_union_px: int = 0
    lost_px: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))

    def update(self, prediction: RLE | None, target: RLE, objects: Sequence[RLE]) -> None:
        """Add one case. `objects`: those of its image, including the target. All masks have the stored image's size."""
        intersection, union = overlap(prediction, target)
        right = intersection > 0 and all(iou(prediction, mask) <= intersection / union for mask in objects)
        self.cases += 1
        self.intersection_px += intersection
        self.union_px += union
        if not right:
            self.lost_px["other"] += union - intersection
            return
        self.right += 1
        self.right_intersection_px += intersection
        self.right_union_px += union
        for cause, pixels in _causes(prediction, target, objects).items():
            self.lost_px[cause] += pixels

    def result(self) -> dict[str, float | int]:
        """Percentages: cIoU, cases with the right object, cIoU of these, and the share lost to each cause."""
        lost = {cause: 100 * pixels / self.union_px for cause, pixels in self.lost_px.items()}
        return {
            "cases": self.cases,
            "ciou": 100 * self.intersection_px / self.union_px,
            "right": 100 * self.right / self.cases,
            "right_ciou": 100 * self.right_intersection_px / max(self.right_union_px, 1),
            **lost,
        }


def mask_errors(cases: Sequence[Case], lines: Sequence[Line], root: Path, name: str) -> dict[str, MaskErrors]:
    """The errors by group: "all" and, for the embedded dataset, each kind of expression.

    `lines`: already checked, in the order of the cases. Raises DatasetError for a benchmark whose expressions do not
    mean exactly one object.
    """
    dataset = name.partition(":")[0]
    if dataset not in refer.NAMES:
        known = " or ".join(refer.NAMES)
        raise DatasetError(f"{name}: mask errors need {known}, where an expression means exactly one object")
    objects = _objects(CocoInstances.read(root / dataset / "instances.json"), cases)
    kinds = expression_kinds(root, dataset)
    errors: dict[str, MaskErrors] = defaultdict(MaskErrors)
    for case, line in zip(cases, lines, strict=True):
        for group in ("all", *([kinds[case.sent_id]] if kinds else [])):
            errors[group].update(line["segmentation"], case.mask, objects[case.image_id])
    return dict(errors)


def table(errors_by_group: dict[str, MaskErrors]) -> str:
    """A Markdown table with one line for each group. Losses are shares of all unions."""
    heads = ("expression", "cases", "cIoU", "right object", "cIoU of these", *(f"lost: {cause}" for cause in CAUSES))
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for group, errors in errors_by_group.items():
        values = errors.result()
        numbers = [f"{values[key]:.1f}" for key in ("ciou", "right", "right_ciou", *CAUSES)]
        rows.append(f"| {group} | {values['cases']:,} | {' | '.join(numbers)} |")
    return "\n".join(rows)


def _objects(coco: CocoInstances, cases: Iterable[Case]) -> dict[int, list[RLE]]:
    """The masks of all annotated objects, by image, for the images of the cases."""
    masks: dict[int, list[RLE]] = {case.image_id: [] for case in cases}
    for annotation_id, annotation in coco.annotations.items():
        image_id = annotation.get("image_id")
        if image_id in masks:
            masks[image_id].append(coco.mask(annotation_id, image_id))
    return masks


def _causes(prediction: RLE, target: RLE, objects: Sequence[RLE]) -> dict[str, int]:
    """Pixels of each cause except `other`."""
    drawn, truth = decode_mask(prediction), decode_mask(target)
    wrong, edge = drawn ^ truth, contour(truth)
    beyond = wrong & ~edge
    occupied = np.logical_or.reduce([truth, *map(decode_mask, objects)])
    return {
        "edge": int((wrong & edge).sum()),
        "also": int((beyond & ~truth & occupied).sum()),
        "ground": int((beyond & ~truth & ~occupied).sum()),
        "inside": int((beyond & truth).sum()),
    }


def contour(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> the pixels near its contour, inside and outside. The image's border is not a contour."""
    distance = boundary_distance_px(mask.shape)
    padded = np.pad(mask, distance + 1, mode="edge")
    near = boundary(padded, distance) | boundary(~padded, distance)
    return near[distance + 1 : -distance - 1, distance + 1 : -distance - 1]
