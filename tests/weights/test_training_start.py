"""Training starts from a converted base, modality twins included, through the usual loop."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported

from conftest import write_refer_dataset  # noqa: E402
from reference_bases import EVEV2, SAIL, write_base  # noqa: E402
from test_neo import SQUARE_WIDTH, write_neo  # noqa: E402

from pixel_sail.config import build_config  # noqa: E402
from pixel_sail.model.pixel_sail import PixelSail  # noqa: E402
from pixel_sail.train.loop import train  # noqa: E402
from pixel_sail.weights.convert.evev2 import plan_evev2  # noqa: E402
from pixel_sail.weights.convert.neo import plan_neo  # noqa: E402
from pixel_sail.weights.convert.new_parts import NewParts  # noqa: E402
from pixel_sail.weights.convert.sail import plan_sail  # noqa: E402
from pixel_sail.weights.convert.streaming import write  # noqa: E402

SECTIONS = {
    "evev2": {"patch_size": 32, "sub_patch_size": 16, "sub_patch_width": 20, "mask_stride": 4, "max_side_px": 64},
    "sail": {"patch_size": 14, "mask_stride": 7, "max_side_px": 56},
    "neo": {"patch_size": 32, "sub_patch_width": SQUARE_WIDTH, "mask_stride": 4, "max_side_px": 64},
}
PLANS = {"evev2": plan_evev2, "sail": plan_sail, "neo": plan_neo}
WRITERS = {"evev2": partial(write_base, EVEV2), "sail": partial(write_base, SAIL), "neo": write_neo}


@pytest.mark.parametrize(("base", "stage"), [("evev2", 0), ("evev2", 3), ("sail", 2), ("neo", 0), ("neo", 3)])
def test_two_steps(base: str, stage: int, tmp_path: Path) -> None:
    section = SECTIONS[base] | {"mask_dim": 16}
    parts = NewParts(section["max_side_px"], None, mask_dim=16)
    write(PLANS[base](WRITERS[base](tmp_path / "base"), parts), tmp_path / "start")
    root = write_refer_dataset(tmp_path / "data")
    values = {
        "run": {"dir": str(tmp_path / "run"), "log_every": 1},
        "model": {"base": str(tmp_path / "start")},
        "architecture": section,
        "data": {"root": str(root), "mixture": [{"source": "refcoco"}], "max_length": 512, "workers": 0},
        "loss": {"points": 64},
        "train": {"steps": 2, "batch_size": 4, "micro_batch_tokens": 1024, "lr": 1e-3, "zero_stage": stage}
        | {"init_from": str(tmp_path / "start"), "warmup_fraction": 0.0, "activation_checkpointing": True},
    }
    train(build_config(values, where="test"))
    before, after = (PixelSail.from_pretrained(tmp_path / name).state_dict() for name in ("start", "run/export"))
    unchanged = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    # no sample has a prompt; the softmax cancels a bias of keys
    without_gradient = ("prompt_linear.weight", "k_proj.text.bias", "k_proj.vision.bias")
    assert [name for name in unchanged if not name.endswith(without_gradient)] == []
