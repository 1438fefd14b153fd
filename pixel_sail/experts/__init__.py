"""Frozen vision experts: an image in, a feature map out. train/distillation.py lets a student learn from them."""

from __future__ import annotations

import torch

from pixel_sail.config import ExpertConfig
from pixel_sail.experts.expert import Expert

__all__ = ["Expert", "open_expert"]


def open_expert(config: ExpertConfig, device: torch.device | str) -> Expert:
    """The expert that `config` names, frozen, in float32 on `device`.

    Raises ConfigError when its folder or model cannot be had (it says what to download and where to put it), when it is
    of another kind, or when weights are missing from it. No random number of the caller is used up.
    """
    with torch.random.fork_rng(devices=[]):  # models draw initial weights before they load theirs
        return _open(config).to(device)


def _open(config: ExpertConfig) -> Expert:
    # Imported here: timm and the model classes take most of a second, and most runs have no expert.
    if config.kind == "mask2former":
        from pixel_sail.experts.mask2former import open_mask2former

        return open_mask2former(config)
    if config.kind == "sam2":
        from pixel_sail.experts.sam2 import open_sam2

        return open_sam2(config)
    from pixel_sail.experts.timm_backbone import open_timm

    return open_timm(config)
