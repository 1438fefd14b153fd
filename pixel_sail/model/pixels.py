"""Pixels as the model computes with them: normalized on its own device, from the bytes that travel there."""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = {  # mean and standard deviation of RGB in 0..1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalize(patches: Tensor, statistics: str = "imagenet") -> Tensor:
    """Patches (N, 3 P P) uint8, each (channel, row, column) -> float32, (value / 255 - mean) / std of its channel.

    Float patches are normalized already and stay as they are. The constants are arguments of kernels: as tensors a GPU
    would wait for them, and as buffers of a module they would follow its dtype.
    """
    if patches.dtype != torch.uint8:
        return patches
    values = patches.float().div_(255)
    for channel, mean, std in zip(values.chunk(3, dim=1), *STATISTICS[statistics], strict=True):
        channel.sub_(mean).div_(std)
    return values
