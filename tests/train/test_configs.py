"""Every config that we ship can be read, and gives DeepSpeed a config."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run  # noqa: F401  (chooses the CPU)

from pixel_sail.config import REPOSITORY, load_config, save_config
from pixel_sail.train.engine import deepspeed_config
from pixel_sail.train.optim import lr_at

OTHER_KINDS = {"ablation.yaml", "expert_scenes.yaml"}  # read by the tests of tools/ablate.py and tools/train_expert.py
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.name not in OTHER_KINDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert lr_at(0, config.train) > 0
    assert deepspeed_config(config, world_size=1)["zero_optimization"]["stage"] == config.train.zero_stage
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
