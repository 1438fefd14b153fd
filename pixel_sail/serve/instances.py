"""Instances: masks of one answer that show one object each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixel_sail.data.masks import encode_mask, iou_matrix

MAX_IOU = 0.7  # of the masks of two objects; from here on, they are taken for one
ANSWER_TOKENS = 256  # about 120 objects


def distinct(masks: Sequence[np.ndarray], scores: Sequence[float] | None) -> list[int]:
    """Which of the masks (H, W) bool stay, in order: of two with an IoU of MAX_IOU or more, the one of higher score.

    The first of them where the scores are equal, or None. Greedy from the highest score on (non-maximum suppression).
    A mask without a pixel goes, too; if none has one, the first stays.
    """
    if len(masks) < 2:
        return list(range(len(masks)))
    seen = [i for i, mask in enumerate(masks) if mask.any()]
    if not seen:
        return [0]
    encoded = [encode_mask(mask) for mask in masks]
    ious = iou_matrix(encoded, encoded)
    order = sorted(seen, key=lambda i: -scores[i]) if scores else seen
    kept: list[int] = []
    for i in order:
        if all(ious[i, other] < MAX_IOU for other in kept):
            kept.append(i)
    return sorted(kept)
