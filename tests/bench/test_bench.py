"""The reference of the benchmark computes the same losses and gradients as the model's own way."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from pixel_sail.bench.reference import plain_losses
from pixel_sail.bench.step import PRESETS, build, our_losses
from pixel_sail.config import REPOSITORY, LossConfig


@pytest.mark.parametrize("mask_stride", [4, 2])
def test_reference_agrees(mask_stride: int) -> None:
    model, batch = build(PRESETS["tiny"], mask_stride, tapered=True, device="cpu", dtype=torch.float32)
    gradients = []
    losses = []
    for compute_loss in (our_losses, plain_losses):
        model.zero_grad()
        losses.append(compute_loss(model, batch, LossConfig(points=500)))
        losses[-1].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-4)


def test_one_json_line() -> None:
    command = [sys.executable, "tools/bench.py", "step", "--preset", "tiny", "--reference", "--repeats", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    for name in ("ours", "reference"):
        assert {"forward_ms", "backward_ms", "step_ms", "tokens_per_s", "peak_memory_mib"} <= result[name].keys()
        assert result[name]["warm_peak_memory_mib"] > 0
    assert result["ratio"]["step_ms"] > 0
