"""Panoptic annotations as training data of a small Mask2Former, and the order of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, resize_nearest
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_panoptic import NAME, read_panoptic, segment_masks
from pixel_sail.experts.features import expert_image
from pixel_sail.scenes.expert_config import STRIDE_PX
from pixel_sail.types import IGNORE_LABEL


@dataclass(frozen=True)
class Segmentation:
    """The segment of every pixel: 0 is no segment, k is the k-th of `classes`."""

    ids: np.ndarray  # (H, W) int64
    classes: tuple[int, ...]  # index of each segment's class


@dataclass(frozen=True)
class Target:
    """One image of a training batch; n segments."""

    image: Tensor  # (3, S, S) uint8
    masks: Tensor  # (n, S, S) float32 in {0, 1}
    classes: Tensor  # (n,) int64
    labels: Tensor  # (S, S) int64, the class of every pixel, or IGNORE_LABEL


class PanopticImages:
    """The images of one split of COCO panoptic annotations. Opening raises DatasetError, reading raises BadSample."""

    def __init__(self, root: Path, split: str, size_px: int):
        path = root / "annotations" / f"panoptic_{split}2017.json"
        panoptic = read_panoptic(root, split, path, ImageFinder(root), NAME, described=False)
        self.images, self.problems, self.classes = panoptic.images, panoptic.problems, panoptic.classes
        categories = read_json(path)["categories"]
        if len(categories) != len(self.classes):
            raise DatasetError(f"{path}: two categories have one name")
        self.stuff = {i for i, category in enumerate(categories) if not category.get("isthing", 1)}
        self.size_px = size_px

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, Segmentation]:
        """The stored image and its segments. Crowds and unannotated pixels are segment 0."""
        image = self.images[index]
        masks = segment_masks(image)
        pixels = load_image(image.path)
        ids = np.zeros((pixels.height, pixels.width), dtype=np.int64)
        for k, segment in enumerate(image.items, start=1):
            ids[decode_mask(masks[segment.segment_id])] = k
        return pixels, Segmentation(ids, tuple(self.classes.index(segment.text) for segment in image.items))

    def __getitem__(self, item: tuple[int, bool]) -> Target:
        """`item`: index, and whether to mirror the image. Segments that vanish in resizing are left out."""
        index, mirrored = item
        image, truth = self.read(index)
        pixels = expert_image(image, self.size_px, "square", STRIDE_PX)
        ids = torch.from_numpy(resize_nearest(truth.ids, (self.size_px, self.size_px)))
        if mirrored:
            pixels, ids = pixels.flip(-1), ids.flip(-1)
        shown = [k for k in range(1, len(truth.classes) + 1) if (ids == k).any()]
        masks = torch.stack([ids == k for k in shown]).float()
        labels = torch.tensor([IGNORE_LABEL, *truth.classes])[ids]
        return Target(pixels, masks, torch.tensor([truth.classes[k - 1] for k in shown]), labels)


def batch_order(images: int, batch_size: int, seed: int, first: int, steps: int, flip: bool) -> Iterator[list]:
    """Batches of (index, mirrored) for steps `first` to `steps`: a function of seed and step alone, in epochs."""
    drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for step in range(first, steps):
        batch = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(position, images)
            if epoch not in drawn:
                rng = np.random.default_rng((seed, epoch))
                drawn = {epoch: (rng.permutation(images), flip & (rng.random(images) < 0.5))}
            permutation, mirrored = drawn[epoch]
            batch.append((int(permutation[place]), bool(mirrored[place])))
        yield batch
