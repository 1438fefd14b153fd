"""The one description of a model: what it refuses, and folders that were written before there was one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pixel_sail.architecture import Architecture, SmallImages, from_flat
from pixel_sail.config import Config, ConfigError, ModelSection, ScratchConfig, build_config, upgraded
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.convert.scratch import from_scratch

FLAT = {  # as config.json had it
    "patch_size": 8,
    "sub_patch_size": 4,
    "sub_patch_width": 64,
    "stem_widths": None,
    "patch_positions": False,
    "region_embedding": "fused",
    "max_side_px": 96,
    "mask_dim": 64,
    "mask_channels": [128, 64, 64],
    "rope_layout": "interleaved",
    "vision_experts": False,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_side_px": 100}, "max_side_px 100 must be a multiple of patch_size 16"),
        ({"sub_patch_size": 3}, "sub_patch_size 3 does not divide patch_size 16"),
        ({"mask_stride": 5}, "mask_stride 5 must be patch_size 16 over a power of two"),
        ({"mask_stride": 32}, "mask_stride 32 must be patch_size 16 over a power of two"),
        ({"mask_channels": [64, 64]}, "mask_channels has 2 widths; patch_size 16 and mask_stride 4 need 3"),
        ({"sub_patch_size": 4, "small_images": {"stem_widths": [4]}}, "a patch is embedded through one of them"),
        ({"sub_patch_theta": 1e4}, "sub_patch_theta needs sub_patch_size, and a sub_patch_width that is a multiple"),
        ({"axis_theta": 0}, "greater than 0"),
        ({"image_attention": "full"}, "'two_way', 'patches' or 'causal'"),
        ({"small_images": {"stem_widths": [4] * 5}}, "has 5 stages, which do not halve patch_size 16 so often"),
        ({"small_images": {"stem_widths": []}}, "at least 1 item"),
        ({"small_images": {"rope_layout": "rows"}}, "'halves' or 'interleaved'"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_when_a_config_is_read(fields: dict[str, Any], message: str) -> None:
    values = config_values() | {"architecture": fields}
    with pytest.raises(ConfigError, match=message):
        build_config(values, where="test")


def test_without_the_section_for_small_images_nothing_of_it_is_on() -> None:
    assert Architecture().small == SmallImages() == SmallImages(stem_widths=None, patch_positions=False)
    assert Architecture().small.rope_layout == "halves"


def test_flat_keys_become_an_architecture() -> None:
    small = SmallImages(rope_layout="interleaved")
    expected = Architecture(
        patch_size=8, sub_patch_size=4, max_side_px=96, mask_stride=2, mask_dim=64, mask_channels=[128, 64, 64],
        small_images=small,
    )  # fmt: skip
    assert Architecture.model_validate(from_flat(FLAT | {"chat_format": "template"})) == expected
    assert PixelSailConfig(None, **FLAT).architecture == expected
    assert Architecture.model_validate(from_flat(FLAT | {"rope_layout": "halves"})).small_images is None


def test_a_folder_of_before_gives_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, mlp_size=32, vocab_size=400)
    parts = Architecture(patch_size=8, mask_dim=16, max_side_px=64, small_images=SmallImages(stem_widths=[4, 6]))
    model, _ = from_scratch(ModelSection(scratch=scratch), parts, ["the red mug"] * 3, "Segment {expression}.")
    model.save_pretrained(tmp_path / "now")
    before = Path(shutil.copytree(tmp_path / "now", tmp_path / "before"))
    values = json.loads((before / "config.json").read_text())
    new = values.pop("architecture")
    flat = {key: value for key, value in new.items() if key not in ("small_images", "mask_stride")}
    flat |= {"mask_channels": parts.channels(32)} | new["small_images"]
    (before / "config.json").write_text(json.dumps(values | flat))
    old = PixelSail.from_pretrained(before)
    assert old.config.architecture == parts.model_copy(update={"mask_channels": parts.channels(32)})
    state = PixelSail.from_pretrained(tmp_path / "now").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in old.state_dict().items())
    old.save_pretrained(tmp_path / "again")
    assert PixelSail.from_pretrained(tmp_path / "again").config.architecture == old.config.architecture


def config_values() -> dict[str, Any]:
    return {
        "run": {"dir": "x"},
        "model": {"base": "y"},
        "data": {"root": "z", "mixture": [{"source": "refcoco"}]},
        "train": {"steps": 1, "batch_size": 1},
    }


def old_values(**train: Any) -> dict[str, Any]:
    """A config of before, every key with its value."""
    values = config_values()
    flat = {key: value for key, value in FLAT.items() if key not in ("mask_channels", "vision_experts")}
    rates = {"pack": True, "optimizer": "adamw", "embeddings_lr_scale": 1.0}
    return values | {
        "model": values["model"] | flat | {"mask_stride": 2, "chat_format": "auto"},
        "train": values["train"] | rates | train,
        "loss": {"oversample": 3.0, "importance": 0.75},
        "evaluate": {"root": None},
    }


def test_a_config_of_before_means_the_same() -> None:
    config = upgraded_config(optimizer="muon", embeddings_lr_scale=5.0)
    assert config.architecture.mask_stride == 2 and config.architecture.small.rope_layout == "interleaved"
    assert config.train.muon is not None and config.train.muon.embeddings_lr_scale == 5.0
    assert upgraded_config().train.muon is None
    lora = upgraded_config(lora={"rank": 2}, embeddings_lr_scale=3.0).train.lora
    assert lora is not None and lora.rows_lr_scale == 3.0
    now = config.model_dump(mode="json")
    assert upgraded(now) == now


def test_what_a_config_of_before_says_and_cannot_be_said_now_is_named() -> None:
    for train, key in (({"pack": False}, "train.pack"), ({"embeddings_lr_scale": 2.0}, "train.embeddings_lr_scale")):
        with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
            upgraded_config(**train)


def upgraded_config(**train: Any) -> Config:
    return build_config(upgraded(old_values(**train)), where="test")
