"""Time and memory of forward and backward of one step, interleaved with the plain implementation (reference.py)."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.bench.reference import plain_losses
from pixel_sail.config import LossConfig
from pixel_sail.data.encode import image_positions
from pixel_sail.data.pack import pack
from pixel_sail.data.runs import join_masks
from pixel_sail.losses import LOSS_COUNTS, SCORE_COUNTS, compute_losses
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Batch, Encoded, ImageBlock

SEG_ID, PATCH_ID = 1, 2  # of the random vocabulary
PROMPT_IDS = list(range(3, 18))
RATIOS = ("forward_ms", "backward_ms", "step_ms", "peak_memory_mib", "warm_peak_memory_mib")


@dataclass(frozen=True)
class Preset:
    """Sizes of the model and of the one sample of its batch."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    mlp_size: int
    vocab_size: int
    patch_size: int
    image_side_px: int
    text_tokens: int
    masks: int
    mask_dim: int
    tied: bool = False  # embeddings and head share their weights
    images: int = 1  # of the sample
    mask_scores: bool = False


PRESETS = {
    "research-512": Preset(12, 512, 8, 2, 1408, 49_152, 16, 512, 128, 2, 256),
    "tiny": Preset(2, 64, 4, 2, 128, 256, 16, 64, 24, 2, 32),
}


def build(preset: Preset, mask_stride: int, tapered: bool, device: str, dtype: torch.dtype) -> tuple[PixelSail, Batch]:
    """A model with random weights and one packed sample of random content, on `device`."""
    torch.manual_seed(0)
    architecture = Architecture(
        patch_size=preset.patch_size, mask_stride=mask_stride, mask_dim=preset.mask_dim, mask_scores=preset.mask_scores
    )
    if not tapered:
        widths = [preset.hidden_size] * (architecture.upsample_blocks + 1)
        architecture = architecture.model_copy(update={"mask_channels": widths})
    config = PixelSailConfig(
        text_config=Qwen2Config(
            vocab_size=preset.vocab_size,
            hidden_size=preset.hidden_size,
            intermediate_size=preset.mlp_size,
            num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads,
            num_key_value_heads=preset.kv_heads,
            tie_word_embeddings=preset.tied,
        ),
        architecture=architecture,
        prompt_token_ids=PROMPT_IDS,
        tie_word_embeddings=preset.tied,
    )
    with torch.device(device):
        model = PixelSail(config).to(dtype)
    return model, random_batch(preset, [(preset.image_side_px,) * 2]).to(device)


def random_batch(preset: Preset, sizes_px: Sequence[tuple[int, int]]) -> Batch:
    """A sample for each (height, width) of an image, packed, on the CPU."""
    samples = [_sample(preset, h // preset.patch_size, w // preset.patch_size) for h, w in sizes_px]
    return pack(samples, SEG_ID, PATCH_ID)


def _sample(preset: Preset, h: int, w: int) -> Encoded:
    """Random text and images of h x w patches each; the masks are on the last."""
    block, images = h * w + 2, range(preset.images)
    image_tokens = block * preset.images
    ids = torch.full((image_tokens + preset.text_tokens,), 30)
    for n in images:
        ids[n * block + 1 : (n + 1) * block - 1] = PATCH_ID
    ids[image_tokens:] = torch.randint(30, preset.vocab_size, (preset.text_tokens,))
    labels = torch.full_like(ids, IGNORE_LABEL)
    answers = preset.text_tokens // 4  # a quarter of the text is answers, the [SEG]s among them
    ids[-answers::4][: preset.masks] = SEG_ID
    labels[-answers:] = ids[-answers:]
    half = h * w * preset.patch_size**2 // 2  # of the pixels of a mask
    size_hw, last = (h * preset.patch_size, w * preset.patch_size), preset.images - 1
    masks = [join_masks([np.array([half, half])] * (preset.masks if n == last else 0), size_hw) for n in images]
    positions = [image_positions(1, h, w, 1) + n * (max(h, w) + 2) for n in images[:-1]]
    positions.append(image_positions(1, h, w, 1 + preset.text_tokens) + last * (max(h, w) + 2))
    return Encoded(
        key="bench",
        seed=0,
        input_ids=ids,
        labels=labels,
        position_ids=torch.cat(positions, dim=1),
        patches=torch.randint(256, (preset.images * h * w, 3 * preset.patch_size**2), dtype=torch.uint8),
        prompt_ids=torch.full((preset.images * h * w,), UNPROMPTED),
        images=tuple(
            ImageBlock((n * block, (n + 1) * block), (h, w), masks[n], tuple(range(len(masks[n])))) for n in images
        ),
    )


def our_losses(model: PixelSail, batch: Batch, config: LossConfig) -> Tensor:
    """The weighted loss of `batch`, as training computes it."""
    losses = compute_losses(model(batch), batch, config)
    counts = batch.counts()
    weights = {"lm": config.lm, "bce": config.bce, "dice": config.dice} | dict.fromkeys(SCORE_COUNTS, config.score)
    denominators = LOSS_COUNTS | SCORE_COUNTS
    return sum(weights[name] * losses[name] / counts[denominators[name]] for name in losses)


Losses = Callable[[PixelSail, Batch, LossConfig], Tensor]


def measure(
    preset_name: str,
    mask_stride: int,
    tapered: bool,
    reference: bool,
    repeats: int,
    device: str,
    dtype: torch.dtype,
    images: int = 1,
    mask_scores: bool = False,
) -> dict[str, Any]:
    """Medians over `repeats` interleaved rounds; times in ms, memory in MiB; ratios are reference / ours.

    With several `images` in the sample, "one_image" is the same with one; with `mask_scores`, "no_scores" is the same
    without the score head. Their ratios are ours / theirs.
    """
    ours = replace(PRESETS[preset_name], images=images, mask_scores=mask_scores)
    presets = {"ours": ours}
    if reference:
        presets["reference"] = replace(ours, mask_scores=False)
    if images > 1:
        presets["one_image"] = replace(ours, images=1)
    if mask_scores:
        presets["no_scores"] = replace(ours, mask_scores=False)
    runs: dict[str, tuple[PixelSail, Batch, Losses]] = {}
    for name, preset in presets.items():
        plain = name == "reference"
        model, batch = build(preset, mask_stride, tapered and not plain, device, dtype)
        runs[name] = model, batch, plain_losses if plain else our_losses
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_number in range(repeats + 1):
        for name, (model, batch, losses) in runs.items():
            measured = _time_step(model, batch, losses)
            if round_number:  # the first is warm-up
                times[name].append(measured)
    result = {name: _summary(values, runs[name][1].tokens) for name, values in times.items()}
    for name in runs:
        arguments = (presets[name], mask_stride, tapered and name != "reference", name == "reference", device, dtype)
        result[name] |= _peak_memory(arguments)
    settings: dict[str, Any] = {"preset": preset_name, "mask_stride": mask_stride}
    settings |= {"head": "tapered" if tapered else "constant width", "tokens": runs["ours"][1].tokens}
    settings |= {"device": device, "dtype": str(dtype), "threads": torch.get_num_threads()}
    settings |= {"images": images} if images > 1 else {}
    if reference:
        settings["ratio"] = _ratios(result["reference"], result["ours"])
    others = [name for name in runs if name not in ("ours", "reference")]
    settings |= {f"ratio_to_{name}": _ratios(result["ours"], result[name]) for name in others}
    return {"bench": "step", **settings, **result}


def _ratios(above: dict[str, float], below: dict[str, float]) -> dict[str, float | None]:
    """None where a tiny model fits into memory that is held already."""
    return {key: round(above[key] / below[key], 2) if below[key] else None for key in RATIOS}


def _time_step(model: PixelSail, batch: Batch, losses: Losses) -> tuple[float, float]:
    """Seconds of forward, seconds of backward."""
    model.zero_grad(set_to_none=True)
    _synchronize(model)
    start = time.perf_counter()
    loss = losses(model, batch, LossConfig())
    _synchronize(model)
    middle = time.perf_counter()
    loss.backward()
    _synchronize(model)
    return middle - start, time.perf_counter() - middle


def _synchronize(model: PixelSail) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _summary(values: list[tuple[float, float]], tokens: int) -> dict[str, float]:
    forward, backward = (median(column) for column in zip(*values, strict=True))
    step = median(a + b for a, b in values)
    milliseconds = {"forward_ms": forward * 1e3, "backward_ms": backward * 1e3, "step_ms": step * 1e3}
    return {key: round(value, 1) for key, value in milliseconds.items()} | {"tokens_per_s": round(tokens / step)}


def _peak_memory(arguments: tuple[Any, ...]) -> dict[str, float]:
    """Peak MiB above the model itself, of a process's first step and of a warm one, which finds memory that is held.

    In a new process, so that nothing else is in it.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        first, warm = pool.apply(_peak_memory_here, arguments)
    return {"peak_memory_mib": round(first, 1), "warm_peak_memory_mib": round(warm, 1)}


def _peak_memory_here(
    preset: Preset, mask_stride: int, tapered: bool, plain: bool, device: str, dtype: torch.dtype
) -> tuple[float, float]:
    model, batch = build(preset, mask_stride, tapered, device, dtype)
    _reset_peak(device)
    before = _peak_mib(device)
    peaks = []
    for _ in range(2):
        _reset_peak(device)
        _time_step(model, batch, plain_losses if plain else our_losses)
        peaks.append(_peak_mib(device) - before)
    return peaks[0], peaks[1]


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to what is resident now


def _peak_mib(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: a new process inherits the peak of its parent there.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10
