"""A real timm expert with random weights, small enough to run in every step of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

WIDTH = 64


def save_expert(folder: Path, seed: int = 0) -> Path:
    """A vision transformer with patches of 16 px, saved as the files of a hub repository."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", pretrained=False)
        with torch.no_grad():  # so that features differ from image to image, as trained ones do
            model.patch_embed.proj.weight.mul_(20)
    timm.models.save_for_hf(model, folder)
    return folder


def expert_values(path: Path, **changes: Any) -> dict[str, Any]:
    """An entry of `experts` in a config; the short side of the expert's images is 48 px."""
    values = {"name": "vit", "kind": "timm", "path": str(path), "at": "patches", "size_px": 48, "fit": "short"}
    return values | changes
