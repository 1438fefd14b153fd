"""train.init_from: any model of ours, by whatever folder, and nothing but that folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_run
import torch
import yaml
from conftest import write_refer_dataset

from pixel_sail.config import Config, ConfigError, load_config
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.build import build_model
from pixel_sail.train.loop import train
from pixel_sail.weights.start import with_start

STEP = "checkpoints/step_00000004"
OTHER = [
    "architecture.patch_size=8",
    "architecture.mask_stride=4",
    "architecture.mask_dim=12",
    "architecture.small_images.rope_layout=interleaved",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("init") / "root")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A finished run (adapters, no default of the model section) whose config and data are not to be asked for."""
    folder = tmp_path_factory.mktemp("first")
    elsewhere = shutil.copytree(root, folder / "root")
    train(tiny_run.tiny_config(folder, elsewhere, "train.lora={rank: 2}", "architecture.max_side_px=56", *OTHER))
    shutil.rmtree(elsewhere)
    return folder / "run"


def next_config(folder: Path, root: Path, start: Path, **values: object) -> Config:
    values = tiny_run.VALUES | {
        "run": {"dir": str(folder / "next"), "log_every": 1},
        "data": tiny_run.VALUES["data"] | {"root": str(root)},
        "train": tiny_run.VALUES["train"] | {"init_from": str(start), "steps": 1},
        "model": {key: value for key, value in values.items() if key == "chat_format"},
        "architecture": {key: value for key, value in values.items() if key != "chat_format"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "next.yaml").write_text(yaml.safe_dump(values))
    return load_config(folder / "next.yaml")


@pytest.mark.parametrize("place", ["export", "", STEP])
def test_an_export_a_run_and_a_checkpoint(place: str, first: Path, root: Path, tmp_path: Path) -> None:
    start = shutil.copytree(first / place, tmp_path / "start")  # alone, as it is handed on
    config = with_start(next_config(tmp_path, root, start))
    assert (config.architecture.patch_size, config.architecture.mask_stride, config.architecture.mask_dim) == (8, 4, 12)
    assert (
        config.architecture.max_side_px,
        config.architecture.small_images.rope_layout,
        config.model.chat_format,
    ) == (56, "interleaved", "auto")
    model, tokenizer = build_model(config)
    wanted = PixelSail.from_pretrained(first / "export").state_dict()
    weights = model.state_dict()
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert tokenizer.get_vocab().keys() >= {"[SEG]", "<Prompt0>"}


def test_a_run_without_an_export_starts_from_its_newest_checkpoint(first: Path, root: Path, tmp_path: Path) -> None:
    run = shutil.copytree(first, tmp_path / "run")
    shutil.rmtree(run / "export")
    train(next_config(tmp_path, root, run))
    saved = yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())
    assert saved["architecture"]["patch_size"] == 8  # the run folder tells the truth, and is taken again as it is
    assert with_start(load_config(tmp_path / "next" / "config.yaml")).architecture.patch_size == 8


def test_keys_that_contradict_are_named(first: Path, root: Path, tmp_path: Path) -> None:
    model = {"patch_size": 16, "mask_stride": 4, "mask_dim": 12, "chat_format": "inst"}
    message = (
        "architecture.patch_size: config 16, checkpoint 8; model.chat_format: config inst, checkpoint template. Leave"
    )
    with pytest.raises(ConfigError, match="does not fit the config") as caught:
        with_start(next_config(tmp_path, root, first, **model))
    assert message in str(caught.value)
    assert with_start(next_config(tmp_path, root, first, patch_size=8, chat_format="auto")).architecture.patch_size == 8


def test_a_model_goes_on_at_another_resolution(first: Path, root: Path, tmp_path: Path) -> None:
    config = next_config(tmp_path, root, first, patch_size=8, max_side_px=32)
    assert with_start(config).architecture.max_side_px == 32
    train(config)
    export = PixelSail.from_pretrained(tmp_path / "next" / "export")
    assert export.config.architecture.max_side_px == 32  # segment() and tools/test.py read images as the run did
    tokens = [json.loads(line)["tokens"] for line in (tmp_path / "next" / "log.jsonl").read_text().splitlines()]
    train(next_config(tmp_path / "as_before", root, first))
    before = [json.loads(line)["tokens"] for line in (tmp_path / "as_before/next/log.jsonl").read_text().splitlines()]
    assert 0 < tokens[0] < before[0]


def test_what_is_no_start(first: Path, root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no model: it has neither config.json"):
        with_start(next_config(tmp_path, root, tmp_path))
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ConfigError, match="holds no model of pixel_sail: give it as model.base"):
        with_start(next_config(tmp_path, root, tmp_path / "llm"))
    old = shutil.copytree(first / STEP, tmp_path / "old")
    shutil.rmtree(old / "model")
    with pytest.raises(FileNotFoundError, match="checkpoints of older versions start nothing: take export/"):
        with_start(next_config(tmp_path, root, old))
    with pytest.raises(ConfigError, match="exactly one of model.base .* or neither with train.init_from") as caught:
        load_config(tmp_path / "next.yaml", ["train.init_from=null"])
    assert len(str(caught.value)) < 400  # not the whole config
