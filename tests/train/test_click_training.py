"""Training with clicks: they are learned, can be added to a model that takes none, and are refused where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_refer_dataset
from tiny_run import log_lines, tiny_config, weights

from pixel_sail.config import ConfigError
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.train.loop import train

TAKES = "architecture.clicks=true"
MADE = "data.clicks={share: 1.0}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer_dataset(tmp_path_factory.mktemp("clicks") / "root")


def test_a_model_without_clicks_learns_them(root: Path, tmp_path: Path) -> None:
    train(tiny_config(tmp_path, root, "train.steps=2"))
    train(tiny_config(tmp_path, root, "train.steps=2", TAKES, f"run.dir={tmp_path / 'unused'}"))
    before, unused = weights(tmp_path / "run"), weights(tmp_path / "unused")
    assert not unused.pop("fusion.clicks.weight").any()
    assert unused.keys() == before.keys() and all(torch.equal(unused[name], before[name]) for name in before)
    start = (f"train.init_from={tmp_path / 'run'}", "model={}", "architecture={}", "train.steps=2")
    train(tiny_config(tmp_path, root, *start, TAKES, MADE, f"run.dir={tmp_path / 'clicks'}"))
    learned = PixelSail.from_pretrained(tmp_path / "clicks/export")
    assert learned.config.architecture.clicks and learned.fusion.clicks.weight[:, :2].abs().max() > 0
    assert all(line["grad_norm"] > 0 for line in log_lines(tmp_path / "clicks"))
    with pytest.raises(ConfigError, match="data.clicks needs architecture.clicks=true"):
        train(tiny_config(tmp_path, root, *start, MADE, f"run.dir={tmp_path / 'refused'}"))
