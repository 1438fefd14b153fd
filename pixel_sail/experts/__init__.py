"""Frozen vision experts: an image in, a feature map out; train/distillation.py teaches a student with them.

A way through the room:

    expert.py        what every expert is; open_expert below opens one by its config
    mask2former.py, sam2.py, timm_backbone.py   one kind of expert each; folder.py loads Hugging Face checkpoints
    cache.py         features on disk: format, reader, writer
    fill_cache.py    run experts over all training images and write their caches (tools/cache_expert.py)
    features.py      what a sample gets: cached features, or the image that an online expert is shown
"""

from __future__ import annotations

import torch

from pixel_sail.config import ExpertConfig
from pixel_sail.experts.expert import Expert

__all__ = ["Expert", "open_expert"]


def open_expert(config: ExpertConfig, device: torch.device | str) -> Expert:
    """Open the expert that `config` describes: frozen, in float32, on `device`.

    Raises ConfigError if it cannot be loaded (the message says what to download and where to put it), if it is of
    another kind, or if weights are missing. The caller's random state does not change.
    """
    with torch.random.fork_rng(devices=[]):  # models draw initial weights before they load theirs
        return _open(config).to(device)


def _open(config: ExpertConfig) -> Expert:
    # Imported here because timm and the model classes take most of a second, and most runs have no expert.
    if config.kind == "mask2former":
        from pixel_sail.experts.mask2former import open_mask2former

        return open_mask2former(config)
    if config.kind == "sam2":
        from pixel_sail.experts.sam2 import open_sam2

        return open_sam2(config)
    from pixel_sail.experts.timm_backbone import open_timm

    return open_timm(config)
