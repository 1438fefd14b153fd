"""Which answers and masks fail, and in which combination."""

from __future__ import annotations

from collections.abc import Sequence

from pixel_sail.data.masks import area_px
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.metrics import iou
from pixel_sail.types import RLE

CELLS = ("both_right", "only_grounding_wrong", "only_vqa_wrong", "both_wrong")
MIN_IOU = 0.5  # above it, a mask is right
MAX_SHARE = 0.5  # of the image: below it, a mask is right if the object is absent


def mask_iou(predicted: RLE | None, case: PixObject) -> float:
    """IoU in 0..1; for an absent object 1 if the mask is empty or missing, else 0."""
    if case.mask_rle is None:
        return float(predicted is None or area_px(predicted) == 0)
    return iou(predicted, case.mask_rle)


def mask_right(predicted: RLE | None, case: PixObject) -> bool:
    """As the authors count: IoU > 0.5; for an absent object, the mask covers less than half of the image."""
    if case.mask_rle is None:
        height, width = case.size_hw
        return predicted is None or area_px(predicted) < MAX_SHARE * height * width
    return mask_iou(predicted, case) > MIN_IOU


def failure_cells(
    cases: Sequence[PixObject], pairs: Sequence[Sequence[int]], answered: Sequence[bool], masked: Sequence[bool]
) -> dict[str, list[list[int]]]:
    """Cell -> its pairs, each as the published indices of its images.

    `pairs`: positions in `cases`. `answered`, `masked`: whether the answer and the mask of each case are right. As the
    authors count, an answer or a mask is right if it is right for the whole pair.
    """
    cells: dict[str, list[list[int]]] = {cell: [] for cell in CELLS}
    for members in pairs:
        answer_right, mask_is_right = (all(right[i] for i in members) for right in (answered, masked))
        cells[CELLS[2 * (not answer_right) + (not mask_is_right)]].append([cases[i].index for i in members])
    return cells
