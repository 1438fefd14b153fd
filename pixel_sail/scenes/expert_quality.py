"""How well an expert segments held-out images: panoptic quality, IoU of classes, class accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pixel_sail.scenes.expert_data import PanopticImages, Segmentation

MATCH = 0.5  # IoU above which a predicted segment matches a true one; at most one can


class PanopticQuality:
    """Panoptic quality of Kirillov et al., "Panoptic Segmentation", CVPR 2019. Pixels of true segment 0 never count."""

    def __init__(self, classes: int):
        self.iou, self.hits = np.zeros(classes), np.zeros(classes)  # of true positives
        self.false_positives, self.misses = np.zeros(classes), np.zeros(classes)
        self.both, self.either = np.zeros(classes), np.zeros(classes)  # pixels
        self.segments = self.matched = self.classified = (
            0  # true ones; matched by any prediction; of those, right class
        )

    def add(self, predicted: Segmentation, truth: Segmentation) -> None:
        """Add one image; both segmentations cover the same (H, W)."""
        p, t = len(predicted.classes) + 1, len(truth.classes) + 1
        joint = np.bincount((predicted.ids * t + truth.ids).ravel(), minlength=p * t).reshape(p, t)
        self._add_segments(predicted.classes, truth.classes, joint)
        self._add_pixels(predicted.classes, truth.classes, joint)

    def summary(self) -> dict[str, float]:
        """Return percentages. PQ, SQ, RQ and mIoU are means over the classes that occur.

        `found`: the share of true segments that a prediction matches, whatever its class. `class_accuracy`: the share
        of these matches whose class is right.
        """
        seen = self.hits + self.false_positives + self.misses > 0
        halves = self.hits + (self.false_positives + self.misses) / 2
        quality, recognition = self.iou[seen] / halves[seen], self.hits[seen] / halves[seen]
        segmentation = self.iou[seen] / np.maximum(self.hits[seen], 1)
        return {
            "pq": 100 * float(quality.mean()),
            "sq": 100 * float(segmentation.mean()),
            "rq": 100 * float(recognition.mean()),
            "miou": 100 * float((self.both[self.either > 0] / self.either[self.either > 0]).mean()),
            "found": 100 * self.matched / self.segments,
            "class_accuracy": 100 * self.classified / max(self.matched, 1),
        }

    def _add_segments(self, predicted: tuple[int, ...], truth: tuple[int, ...], joint: np.ndarray) -> None:
        areas = joint[1:].sum(1)
        counted = areas - joint[1:, 0]
        shared = joint[1:, 1:]
        union = counted[:, None] + joint[:, 1:].sum(0) - shared
        iou = shared / np.maximum(union, 1)
        hit, missed = set(), set(range(len(truth)))
        for i, k in np.argwhere(iou > MATCH):
            self.matched += 1
            self.classified += predicted[i] == truth[k]
            if predicted[i] == truth[k]:
                hit.add(i)
                missed.discard(k)
                self.hits[truth[k]] += 1
                self.iou[truth[k]] += iou[i, k]
        self.segments += len(truth)
        for k in missed:
            self.misses[truth[k]] += 1
        for i in range(len(predicted)):
            if i not in hit and 2 * counted[i] >= areas[i]:  # otherwise it lies mostly on unannotated pixels
                self.false_positives[predicted[i]] += 1

    def _add_pixels(self, predicted: tuple[int, ...], truth: tuple[int, ...], joint: np.ndarray) -> None:
        for i, predicted_class in enumerate(predicted, start=1):
            self.either[predicted_class] += joint[i, 1:].sum()
        for k, true_class in enumerate(truth, start=1):
            right = sum(joint[i, k] for i, other in enumerate(predicted, start=1) if other == true_class)
            self.both[true_class] += right
            self.either[true_class] += joint[:, k].sum() - right


@torch.no_grad()
def score(model: Any, processor: Any, images: PanopticImages, count: int | None) -> dict[str, float]:
    """Quality of a Mask2FormerForUniversalSegmentation with its own image processor on the first `count` images."""
    quality = PanopticQuality(len(images.classes))
    training = model.training
    model.eval()
    for index in tqdm(range(len(images))[:count], desc="scoring", unit="image", disable=None, leave=False):
        image, truth = images.read(index)
        outputs = model(**processor(image, return_tensors="pt").to(model.device))
        segments = processor.post_process_panoptic_segmentation(
            outputs, label_ids_to_fuse=images.stuff, target_sizes=[truth.ids.shape]
        )[0]
        quality.add(_dense(segments), truth)
    model.train(training)
    return quality.summary()


def _dense(output: dict[str, Any]) -> Segmentation:
    """transformers' output as a Segmentation: ids without gaps; pixels without a segment (-1) become 0."""
    numbers = output["segmentation"].cpu().numpy().astype(np.int64)
    classes = {segment["id"]: segment["label_id"] for segment in output["segments_info"]}  # fused ones are repeated
    ids = np.zeros_like(numbers)
    for k, number in enumerate(classes, start=1):
        ids[numbers == number] = k
    return Segmentation(ids, tuple(classes.values()))
