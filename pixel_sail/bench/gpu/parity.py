"""The model on the GPU next to itself in float32 on the CPU: logits, masks, loss, gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from pixel_sail.bench.gpu.checks import Report
from pixel_sail.bench.gpu.clock import relative_error
from pixel_sail.bench.step import PRESETS, build, random_batch
from pixel_sail.losses import next_token_loss
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import Batch

PRESET = replace(PRESETS["research-512"], vocab_size=8192, text_tokens=64)
DEVICE = "cuda"
SIZES_PX = ((256, 256), (192, 320))


@dataclass(frozen=True)
class Mode:
    """How the GPU computes, and the largest relative errors."""

    name: str
    weights: torch.dtype
    autocast: bool
    values: float  # of logits and mask logits
    loss: float
    gradients: float  # of the gradient of each weight, the median; the largest may be LARGEST times that


LARGEST = 3
# The same model in bf16 on a CPU: 0.027 of the logits, 0.039 of the masks, 0.0003 of the loss, 0.069 of the gradients
# (largest 0.137); under autocast 0.020, 0.022, 0.0003, 0.045 (0.087). Images read causally: 0.40, 0.65, 0.0047.
MODES = (
    Mode("float32", torch.float32, False, 1e-3, 1e-4, 2e-3),
    Mode("bf16", torch.bfloat16, False, 0.08, 2e-3, 0.15),
    Mode("bf16 autocast", torch.float32, True, 0.05, 2e-3, 0.1),
)


def run(report: Report) -> None:
    torch.backends.cudnn.allow_tf32 = False  # torch allows it for the convolutions of float32
    model, _ = build(PRESET, 4, True, "cpu", torch.float32)
    batch, state = random_batch(PRESET, SIZES_PX), model.state_dict()
    expected = _compute(model, batch)
    for mode in MODES:
        with report.part(mode.name):
            on_gpu = build(PRESET, 4, True, DEVICE, mode.weights)[0]
            on_gpu.load_state_dict(state)
            moved = batch.to(DEVICE)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=mode.autocast):
                computed = _compute(on_gpu, moved)
            _compare(report, mode, computed, expected)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=mode.autocast):
                wrong = _compute(on_gpu, _causal(moved))
            error = relative_error(wrong.logits, expected.logits)
            report.number(f"{mode.name}: control, images read causally", error, least=mode.values)


@dataclass(frozen=True)
class Computed:
    logits: Tensor
    masks: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def _compute(model: PixelSail, batch: Batch) -> Computed:
    """Masks are supervised in each pixel: random points would not be the same on both."""
    model.zero_grad()
    output = model(batch)
    masks = torch.cat([logits.float().flatten() for logits in output.mask_logits])
    sizes = [logits.shape[1:] for logits in output.mask_logits]
    truth = [F.interpolate(m.pixels()[None].float(), size=size)[0] for m, size in zip(batch.masks, sizes, strict=True)]
    bce = F.binary_cross_entropy_with_logits(masks, torch.cat([m.flatten() for m in truth]))
    loss = next_token_loss(output.logits, batch.labels, batch.label_weights) / len(batch.labels) + bce
    loss.backward()
    gradients = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
    return Computed(output.logits.detach(), masks.detach(), loss.detach(), gradients)


def _compare(report: Report, mode: Mode, computed: Computed, expected: Computed) -> None:
    for name, bound in (("logits", mode.values), ("masks", mode.values), ("loss", mode.loss)):
        error = relative_error(getattr(computed, name), getattr(expected, name))
        report.number(f"{mode.name}: {name}, error", error, most=bound)
    errors = {name: relative_error(g, expected.gradients[name]) for name, g in computed.gradients.items()}
    report.number(f"{mode.name}: gradients, median error", median(errors.values()), most=mode.gradients)
    worst = max(errors, key=lambda name: errors[name])
    report.number(f"{mode.name}: gradients, largest error", errors[worst], most=LARGEST * mode.gradients)
    report.text(f"{mode.name}: largest error at", worst)


def _causal(batch: Batch) -> Batch:
    return replace(batch, spans=tuple((start, stop, stop, stop) for start, _, _, stop in batch.spans), varlen=())
