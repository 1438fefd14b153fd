"""Configs: strict, readable, reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pixel_sail.config import ConfigError, load_config

SMALL = {
    "run": {"dir": "runs/x"},
    "model": {"scratch": {"hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 128}},
    "data": {"root": "data/scenes", "mixture": [{"source": "refcoco"}]},
    "train": {"steps": 3, "batch_size": 4},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("model.scratch.hiden_size=3", "did you mean 'model.scratch.hidden_size'?"),
        ("trian.lr=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.lr=fast", "train.lr: Input should be a valid number"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 0, 1, 2 or 3, got 4"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1"),
        ("train.lr", "override 'train.lr': write key.sub=value"),
        ("train.lr.x=1", None),
        ("train.freeze=[fusion.*", "override 'train.freeze=[fusion.*': the value is not valid YAML"),
        ("model.base=some/model", "give exactly one of model.base"),
        ("data.mixture=[]", "data.mixture: List should have at least 1 item"),
    ],
)
def test_bad_overrides(small: Path, override: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(small, ["train.lr=1e-3", override])
    assert message is None or message in str(error.value)


def test_overrides_in_lists(small: Path) -> None:
    config = load_config(small, ["data.mixture.0.root=/elsewhere", "data.mixture.0.weight=2"])
    assert config.data.mixture[0].source == "refcoco" and config.data.mixture[0].root == Path("/elsewhere")
    for override in ("data.mixture.1.root=/x", "data.mixture.first.root=/x"):
        with pytest.raises(ConfigError, match="is no number of an item; the list has 1, from 0"):
            load_config(small, [override])


def test_overrides_and_bases(small: Path) -> None:
    child = small.with_name("child.yaml")
    child.write_text("base: small.yaml\ntrain: {batch_size: 8}\n")
    config = load_config(child, ["train.steps=7", "model.scratch.layers=1"])
    assert (config.train.batch_size, config.train.steps, config.model.scratch.layers) == (8, 7, 1)
    assert config.model.scratch.hidden_size == 64


def test_missing_file_names_the_nearest(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*smal.yaml; did you mean .*small.yaml\?"):
        load_config(small.with_name("smal.yaml"))


def test_missing_key(small: Path) -> None:
    values = yaml.safe_load(small.read_text())
    del values["data"]["root"]
    small.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="missing key 'data.root'"):
        load_config(small)
