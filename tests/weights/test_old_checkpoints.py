"""Runs of before `architecture` was a section of its own: their checkpoints are exported, started from and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from conftest import write_refer_dataset

from pixel_sail.architecture import SmallImages
from pixel_sail.config import load_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.loop import train
from pixel_sail.weights.consolidate import model_of_checkpoint
from pixel_sail.weights.publish import open_model, publish
from pixel_sail.weights.start import load_start

OVERRIDES = ("train.save_every=2", "train.muon={embeddings_lr_scale: 5}")
INTERLEAVED = "architecture.small_images.rope_layout=interleaved"
REMOVED = {
    "train": {"pack": True, "embeddings_lr_scale": 1.0, "optimizer": "adamw"},
    "loss": {"oversample": 3.0, "importance": 0.75},
    "evaluate": {"root": None},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("old") / "root")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A finished run that saved at steps 2 and 4, as it is written today."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_run.tiny_config(folder, root, *OVERRIDES, INTERLEAVED))
    return folder / "run"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """The same run with the JSON files of before. Copy it before changing it."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("before") / "run"))
    rewrite_run(run)
    return run


def rewrite_run(run: Path) -> None:
    """Rewrites config.json and state.json of a run as they were before."""
    for path in (*run.glob("checkpoints/*/model/config.json"), run / "export" / "config.json"):
        values = json.loads(path.read_text())
        architecture, hidden = values.pop("architecture"), values["text_config"]["hidden_size"]
        del architecture["mask_stride"]
        del values["chat_pieces"]
        path.write_text(json.dumps(values | flat(architecture) | {"mask_channels": [hidden] * 3}))
    (run / "export" / "checksums.json").unlink()
    for path in run.glob("checkpoints/*/checksums.json"):
        path.unlink()
    for path in run.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        config = state["config"]
        architecture = config.pop("architecture")
        del architecture["mask_channels"], architecture["vision_experts"]  # config.json alone had these
        config["model"] |= flat(architecture)
        for section, values in REMOVED.items():
            config[section] |= values
        if muon := config["train"].pop("muon"):
            config["train"] |= {"optimizer": "muon", "embeddings_lr_scale": muon["embeddings_lr_scale"]}
        path.write_text(json.dumps(state))


def flat(architecture: dict[str, Any]) -> dict[str, Any]:
    small = architecture.pop("small_images") or SmallImages().model_dump()
    del small["position_scale"]  # new in 0.2.0
    return architecture | small


def assert_same_weights(state: dict[str, torch.Tensor], export: Path) -> None:
    expected = PixelSail.from_pretrained(export).state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def test_the_rewritten_files_are_those_of_before(old: Path) -> None:
    config = json.loads((old / "checkpoints/step_00000004/model/config.json").read_text())
    assert "architecture" not in config and config["rope_layout"] == "interleaved"
    assert config["mask_channels"] == [32, 32, 32] and config["patch_size"] == 16
    run_config = json.loads((old / "checkpoints/step_00000004/state.json").read_text())["config"]
    assert "architecture" not in run_config and run_config["model"]["mask_stride"] == 4
    assert run_config["train"]["optimizer"] == "muon" and "muon" not in run_config["train"]


def test_a_checkpoint_is_exported(old: Path, finished: Path, tmp_path: Path) -> None:
    model = open_model(old / "checkpoints" / "step_00000004")
    publish(model, tmp_path / "out", None, 10**9, "old", None, None)
    assert_same_weights(PixelSail.from_pretrained(tmp_path / "out").state_dict(), finished / "export")
    config = PixelSail.from_pretrained(tmp_path / "out").config
    assert config.architecture.small.rope_layout == "interleaved" and config.architecture.mask_stride == 4
    assert_same_weights(model_of_checkpoint(old / "checkpoints/step_00000004")[0].state_dict(), finished / "export")


@pytest.mark.parametrize("folder", ["export", "checkpoints/step_00000004"])
def test_a_run_starts_from_it(folder: str, old: Path, finished: Path, root: Path, tmp_path: Path) -> None:
    assert_same_weights(load_start(old / folder)[0].state_dict(), finished / "export")
    train(start_config(tmp_path, root, old / folder, "train.steps=1"))
    assert PixelSail.from_pretrained(tmp_path / "run/export").config.architecture.small.rope_layout == "interleaved"


def test_it_is_resumed(old: Path, finished: Path, root: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(old, tmp_path / "run"))
    tiny_run.forget_second_half(run)
    train(tiny_run.tiny_config(tmp_path, root, *OVERRIDES, INTERLEAVED))
    tiny_run.assert_same_bits(run, finished)


def test_a_run_that_had_started_from_another_is_resumed(old: Path, root: Path, tmp_path: Path) -> None:
    """Its config never had the widths of the mask head, which now come from the model it started from."""
    config = start_config(tmp_path, root, old / "export", *OVERRIDES)
    train(config)
    straight = Path(shutil.copytree(tmp_path / "run", tmp_path / "straight"))
    rewrite_run(tmp_path / "run")
    tiny_run.forget_second_half(tmp_path / "run")
    train(config)
    tiny_run.assert_same_bits(tmp_path / "run", straight)


def start_config(folder: Path, root: Path, start: Path, *overrides: str):
    """The tiny config with the model of `start` in place of one from scratch."""
    path = tiny_run.write_config(folder, root)
    without_model = ("model.scratch=null", "architecture={}", f"train.init_from={start}")
    return load_config(path, [*without_model, *overrides])
