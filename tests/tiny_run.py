"""A model and a dataset so small that a training run takes seconds; what the tests of this folder share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from warm import run_tool

from pixel_sail.config import Config, load_config
from pixel_sail.durable import read_json_lines
from pixel_sail.train.log import CLOCK_KEYS

VALUES: dict[str, Any] = {
    "run": {"dir": "set by each test", "log_every": 1},
    "model": {
        "scratch": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_size": 64, "vocab_size": 400},
    },
    "architecture": {"patch_size": 16, "max_side_px": 64, "mask_dim": 16},
    "data": {
        "root": "set by each test",
        "mixture": [{"source": "refcoco"}, {"source": "grefcoco", "weight": 0.5}],
        "expressions_per_image": 2,
        "max_length": 512,
        "workers": 0,
    },
    "loss": {"points": 64},
    "train": {"steps": 4, "batch_size": 6, "micro_batch_tokens": 4096, "lr": 1e-3, "save_every": 100},
}


def write_config(folder: Path, root: Path) -> Path:
    """The tiny config with its run.dir at folder/run."""
    values = VALUES | {
        "run": VALUES["run"] | {"dir": str(folder / "run")},
        "data": VALUES["data"] | {"root": str(root)},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def tiny_config(folder: Path, root: Path, *overrides: str) -> Config:
    return load_config(write_config(folder, root), overrides)


def run_cli(config: Path, *overrides: str, processes: int = 1) -> tuple[int, str]:
    """tools/train.py in processes of its own: (exit status, everything it printed)."""
    return run_tool("tools/train.py", config, *overrides, processes=processes)


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    """log.jsonl without what a clock decides."""
    lines = read_json_lines(run_dir / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in CLOCK_KEYS} for line in lines]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "export" / "model.safetensors")


def assert_same_bits(run_a: Path, run_b: Path) -> None:
    """Two runs wrote the same log (clock aside) and the same weights."""
    assert json.dumps(log_lines(run_a)) == json.dumps(log_lines(run_b))
    a, b = weights(run_a), weights(run_b)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_same_curve(run_a: Path, run_b: Path, tolerance: float = 1e-4) -> None:
    """Two runs agree in every loss of every step and in the weights they end with."""
    for a, b in zip(log_lines(run_a), log_lines(run_b), strict=True):
        for name in ("loss", "lm", "bce", "dice"):
            assert abs(a[name] - b[name]) < tolerance, (a, b)
        assert (a["samples"], a["tokens"]) == (b["samples"], b["tokens"])
        # The updates hardly show the scale of the gradients: Adam and clipping undo it.
        assert abs(a["grad_norm"] / b["grad_norm"] - 1) < tolerance, (a, b)
    a, b = weights(run_a), weights(run_b)
    assert max((a[name] - b[name]).abs().max().item() for name in a) < tolerance


def forget_second_half(run_dir: Path) -> None:
    """Leaves a finished run of 4 steps as a kill after step 2 would: without its newer checkpoint and its export."""
    shutil.rmtree(run_dir / "checkpoints" / "step_00000004")
    shutil.rmtree(run_dir / "export")
