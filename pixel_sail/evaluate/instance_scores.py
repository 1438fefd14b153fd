"""Scores of masks one by one: COCO's AP, and SA-Co's cgF1 with its two factors."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pixel_sail.data.masks import area_px, iou_matrix
from pixel_sail.types import RLE

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU; those of pycocotools
AT_50, AT_75 = 0, 5  # which of them are 0.5 and 0.75
LEAST_SCORE = 0.5  # cgF1 does not see masks of a lower score


@dataclass(frozen=True)
class Instances:
    """The masks of one category in one image, all of its size, and what a model gave for it."""

    image: int  # a number for each image
    category: int  # a number for each category
    size_hw: tuple[int, int]  # pixels of the image
    truth: Sequence[RLE]
    masks: Sequence[RLE]
    scores: Sequence[float]  # of each of `masks`


def mask_ap(cases: Sequence[Instances], thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray | None:
    """AP in percent at each IoU threshold, (T,), the mean over categories; by pycocotools. None without a true mask.

    For each category the images in which it is a case, as in federated datasets (LVIS, arXiv 1908.03195): elsewhere it
    was not asked for. At most 100 masks of a category and image, those of the highest scores.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    true = [(case, mask) for case in cases for mask in case.truth]
    given = [(case, mask, score) for case in cases for mask, score in zip(case.masks, case.scores, strict=True)]
    if not true or not given:
        return np.zeros(len(thresholds)) if true else None
    sizes = {case.image: case.size_hw for case in cases}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image, "height": size[0], "width": size[1]} for image, size in sizes.items()],
            "categories": [{"id": number} for number in sorted({case.category for case in cases})],
            "annotations": [
                {**_ids(case), "id": number, "segmentation": mask, "area": area_px(mask), "iscrowd": 0}
                for number, (case, mask) in enumerate(true, start=1)
            ],
        }
        truth.createIndex()
        results = truth.loadRes([{**_ids(case), "segmentation": mask, "score": score} for case, mask, score in given])
        evaluation = COCOeval(truth, results, "segm")
        evaluation.params.iouThrs = np.asarray(thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (T, recalls, categories), of all sizes
    return 100 * precision[:, :, (precision[0] > -1).all(axis=0)].mean(axis=(1, 2))  # -1: no true mask of a category


def _ids(case: Instances) -> dict[str, int]:
    return {"image_id": case.image, "category_id": case.category}


@dataclass(frozen=True)
class ConceptF1:
    """cgF1 = pmF1 x IL_MCC (SAM 3, arXiv 2511.16719), as in github.com/facebookresearch/sam3, sam3/eval/cgf1_eval.py.

    A case is a phrase about an image; it is positive if something is there. Masks of a score below the threshold do not
    count. pmF1: in each positive case, masks are matched one to one with the true ones so that the sum of their IoUs is
    largest; a pair is right from an IoU threshold on. F1 of all masks of these cases together, the mean over the IoU
    thresholds. IL_MCC: Matthews' correlation coefficient, over the cases, of "something is there" with "a mask is
    given". The code adds 1e-4 or 1e-6 to denominators, which here nothing is added to: the first decimal is the same.
    """

    pmf1: float | None  # percent; None without a positive case
    pmf1_50: float | None  # at an IoU threshold of 0.5 alone
    il_mcc: float | None  # -100..100; None unless there are cases of both kinds; 0 if all predictions are alike

    @classmethod
    def of(cls, cases: Sequence[Instances], least_score: float = LEAST_SCORE) -> ConceptF1:
        right, given, true = np.zeros(len(THRESHOLDS)), 0, 0
        confusion = np.zeros((2, 2))  # [something is there, a mask is given]
        for case in cases:
            masks = [mask for mask, score in zip(case.masks, case.scores, strict=True) if score >= least_score]
            confusion[int(bool(case.truth)), int(bool(masks))] += 1
            if case.truth:
                ious = iou_matrix(masks, case.truth)
                paired = ious[linear_sum_assignment(ious, maximize=True)]
                right += (paired[None] >= THRESHOLDS[:, None]).sum(axis=1)
                given, true = given + len(masks), true + len(case.truth)
        f1 = 200 * right / (given + true) if true else None
        if f1 is None:
            return cls(None, None, _correlation(confusion))
        return cls(float(f1.mean()), float(f1[AT_50]), _correlation(confusion))

    @property
    def cgf1(self) -> float | None:
        """Percent."""
        return None if self.pmf1 is None or self.il_mcc is None else self.pmf1 * self.il_mcc / 100


def _correlation(confusion: np.ndarray) -> float | None:
    """Matthews' coefficient of counts [truth, prediction], times 100."""
    if not confusion.sum(axis=1).all():
        return None
    (tn, fp), (fn, tp) = confusion.tolist()
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return 100 * (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
