"""Which of answer and mask fail, and where."""

from __future__ import annotations

from collections.abc import Sequence

from pixel_sail.data.masks import area_px, overlap_px
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.types import RLE

CELLS = ("both_right", "only_grounding_wrong", "only_vqa_wrong", "both_wrong")
MIN_IOU = 0.5  # above, a mask is right
MAX_SHARE = 0.5  # of the image: below, a mask is right where there is no object


def mask_iou(predicted: RLE | None, one: PixObject) -> float:
    """IoU in 0..1; 1 where there is neither a mask nor an object."""
    if one.mask_rle is None:
        return float(predicted is None or area_px(predicted) == 0)
    if predicted is None:
        return 0.0
    intersection, union = overlap_px(predicted, one.mask_rle)
    return intersection / union


def mask_right(predicted: RLE | None, one: PixObject) -> bool:
    """IoU > 0.5; where the object is absent, less than half of the image is covered (as the authors count)."""
    if one.mask_rle is None:
        height, width = one.size_hw
        return predicted is None or area_px(predicted) < MAX_SHARE * height * width
    return mask_iou(predicted, one) > MIN_IOU


def failure_cells(
    objects: Sequence[PixObject], pairs: Sequence[Sequence[int]], answered: Sequence[bool], masked: Sequence[bool]
) -> dict[str, list[list[int]]]:
    """Cell -> the pairs in it, each as the published indices of its images.

    `pairs`: positions in `objects`. As the authors count, an answer or a mask is right where it is for the whole pair.
    """
    cells: dict[str, list[list[int]]] = {cell: [] for cell in CELLS}
    for members in pairs:
        answer, mask = (all(right[i] for i in members) for right in (answered, masked))
        cells[CELLS[2 * (not answer) + (not mask)]].append([objects[i].index for i in members])
    return cells
