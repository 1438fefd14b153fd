"""The reference of the benchmark computes the same losses and gradients as the model's own way."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as symbolic_shapes
from conftest import write_refer_dataset
from PIL import Image
from tiny_run import tiny_config

from pixel_sail.bench.annotations import write_annotations
from pixel_sail.bench.blocks import measure_blocks
from pixel_sail.bench.reference import plain_losses
from pixel_sail.bench.start import measure_start
from pixel_sail.bench.step import PRESETS, build, our_losses
from pixel_sail.bench.throughput import _resized, measure_data
from pixel_sail.config import REPOSITORY, LossConfig
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.model import depthwise
from pixel_sail.types import Sample


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


def test_the_forms_of_the_mask_blocks_are_measured() -> None:
    with symbolic_shapes.patch(use_duck_shape=True):  # and back
        result = measure_blocks(1, 2, 3, repeats=1, device="cpu", dtype=torch.float32, backend="eager")
    for form in ("uncompiled", "shifts", "convolution"):
        assert result[form]["first_s"] > 0 and result[form]["ms"] > 0
        assert result[form]["difference"] < 1e-5
    assert result["shifts"]["difference"] > 0 == result["uncompiled"]["difference"]  # it was another form
    assert depthwise.COMPILED == "shifts"


def test_start_at_a_thousandth_of_the_published_counts(tmp_path) -> None:
    result = measure_start(tmp_path, 0.001, touched=3, workers=[1, 2])
    assert result["sources"]["coco_instance"]["entries"] == 118
    assert result["sources"]["llava_mix665k"]["entries"] == 665
    assert {"open_s", "first_sample_s", "own_mib", "mapped_mib", "peak_mib"} <= result["sources"]["refcoco"].keys()
    assert result["sources"]["refcoco"]["again"]["entries"] == result["sources"]["refcoco"]["entries"]
    assert {"rank_peak_gib", "machine_gib"} <= result["real_counts"].keys()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    write_annotations(tmp_path / "scale_0.001", 0.001)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}  # made once


def test_data_at_another_size(tmp_path) -> None:
    """64 x 48 px are enlarged to 256 x 192; a batch has a byte for each channel of a pixel, and little more."""
    config = tiny_config(tmp_path, write_refer_dataset(tmp_path / "root"), "architecture.max_side_px=256")
    result = measure_data(config, samples=3, side_px=256)
    assert 3 * 256 * 192 < result["batch_mb"] * 1e6 < 1.3 * 3 * 256 * 192
    assert min(result["samples_per_s"], result["encode_cpu_ms"]) > 0
    assert {"read_cpu_ms", "pack_cpu_ms", "tokens_per_s"} <= result.keys()


def test_images_are_enlarged_with_their_masks(tmp_path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    mask = np.zeros((30, 40), dtype=bool)
    mask[:15, :10] = True
    sample = Sample("k", tmp_path / "a.jpg", (), (encode_mask(mask),), {0: encode_mask(~mask)})
    larger = _resized(sample, 80)
    assert load_image(larger.image).size == (80, 60)
    large = decode_mask(larger.masks[0])
    assert large.nonzero()[0].max() == 29 and large.sum() == 4 * mask.sum()
    assert (decode_mask(larger.prompts[0]) == ~large).all()
