"""Attention kernels and losses against plain float32 on the same GPU, and proof that the bounds see a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_sail import losses
from pixel_sail.bench.blocks import FORMS, measure_blocks
from pixel_sail.bench.gpu.checks import Report
from pixel_sail.bench.gpu.clock import gpu_ms, relative_error
from pixel_sail.bench.reference import dense_mask
from pixel_sail.config import LossConfig
from pixel_sail.data.masks import encode_mask, mask_runs
from pixel_sail.data.runs import join_masks
from pixel_sail.layout import Span, attended
from pixel_sail.model.attention import AttentionLayout, mixed_attention
from pixel_sail.model.flash import Flash, installed
from pixel_sail.types import DeferredLogits, Masks, Output

DEVICE = "cuda"
HEADS, WIDTH = 14, 64  # of the 0.5B recipe
KV_HEADS = (2, 14)  # the recipe's; and equal ones, for which torch may take other kernels (cuDNN)
# Relative errors of bf16 results next to float32 ones; bf16 keeps 8 bits, 0.2 % of a number on average. For the
# kernels of this torch on a CPU: 0.3 % forward, 0.5 % for gradients.
FORWARD_ERROR, GRADIENT_ERROR = 0.01, 0.02
LOSS_ERROR, POINTS_ERROR = 1e-4, 2e-3  # of float32; points are chosen by float32 logits, and near ties may differ
# An image with text around it, text alone, an image with text after it, an image alone.
SPANS: tuple[Span, ...] = (
    (0, 20, 1046, 1250),
    (1250, 1250, 1250, 1700),
    (1700, 1700, 2726, 3000),
    (3000, 3000, 3500, 3500),
)
LARGE_SPANS: tuple[Span, ...] = tuple((s, s, s + 4098, s + 4228) for s in range(0, 8 * 4228, 4228))  # 8 x 1024 px
VOCABULARY, LABELS = 151_936, 4000
BLOCK_GRID, BLOCK_ROUNDS = (8, 64, 64), 10  # images of 1024 px
BLOCK_DIFFERENCE = 0.05  # of the largest value: two roundings of bf16 sums


@dataclass(frozen=True)
class Kernel:
    """An attention kernel that can be chosen, under a name."""

    name: str
    kind: str
    flash: Flash | None = None


def run(report: Report) -> None:
    with report.part("chunked cross entropy"):
        _cross_entropy(report)
    with report.part("mask losses"):
        _mask_losses(report)
    exact = {}  # number of key heads -> inputs, results and gradients
    for kv_heads in KV_HEADS:
        inputs = _inputs(SPANS, kv_heads)
        attend = partial(_brute_force, dense_mask(SPANS, DEVICE))
        exact[kv_heads] = inputs, _with_gradients(attend, [x.float() for x in inputs])
    for kernel in _kernels():
        for kv_heads, (inputs, expected) in exact.items():
            name = f"{kernel.name}, {HEADS}/{kv_heads} heads"
            with report.part(name):
                _against_brute_force(report, name, kernel, inputs, expected)
        with report.part(f"{kernel.name}: time"):
            _time(report, kernel)
        torch.cuda.empty_cache()
    with report.part("mask blocks"):
        _mask_blocks(report)


def _kernels() -> Iterator[Kernel]:
    """All that model/attention.py can choose on this GPU; what compiles comes last."""
    for name, flash in installed(torch.cuda.get_device_capability()[0]):
        yield Kernel(name, "flash", flash)
    yield Kernel("SDPA", "sdpa")
    yield Kernel("FlexAttention", "flex")


def _inputs(spans: Sequence[Span], kv_heads: int) -> list[Tensor]:
    """Queries, keys and values in bf16, (1, heads, L, WIDTH)."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(1, heads, spans[-1][3], WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16) for shape in shapes]


def _run(kernel: Kernel, spans: Sequence[Span], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    layout = AttentionLayout(tuple(spans), kernel.kind, q.device, flash=kernel.flash)  # type: ignore[arg-type]
    return mixed_attention(nn.Module(), q, k, v, None, scaling=WIDTH**-0.5, layout=layout)[0]


def _brute_force(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * WIDTH**-0.5
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def _with_gradients(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result, and the gradients of queries, keys and values for a fixed random gradient of the result."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = torch.randn(out.shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def _against_brute_force(
    report: Report, kernel_name: str, kernel: Kernel, inputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    computed = _with_gradients(partial(_run, kernel, SPANS), inputs)
    names = ("forward", "gradient of q", "gradient of k", "gradient of v")
    bounds = (FORWARD_ERROR, *[GRADIENT_ERROR] * 3)
    for name, ours, theirs, bound in zip(names, computed, expected, bounds, strict=True):
        report.number(f"{kernel_name}: {name}, error", relative_error(ours, theirs), most=bound)
    # what is wrong on purpose must be seen: one token of each image not seen by the rest of it, and a plain causal mask
    for what, spans in (("image 1 token short", _shorter(1)), ("causal mask", _shorter(10**9))):
        with torch.no_grad():
            wrong = _run(kernel, spans, *inputs)
        error = relative_error(wrong, expected[0])
        report.number(f"{kernel_name}: control, {what}", error, least=FORWARD_ERROR)


def _shorter(tokens: int) -> list[Span]:
    return [(start, a, max(a, b - tokens), stop) for start, a, b, stop in SPANS]


def _time(report: Report, kernel: Kernel) -> None:
    """Forward and backward of one layer for a micro-batch of the 0.5B recipe.

    A pair of tokens costs 4 WIDTH FLOPs in each head, backward 2.5 times that (FlashAttention-2, arXiv 2307.08691).
    """
    inputs = [x.requires_grad_() for x in _inputs(LARGE_SPANS, KV_HEADS[0])]
    layout = AttentionLayout(LARGE_SPANS, kernel.kind, inputs[0].device, flash=kernel.flash)  # type: ignore[arg-type]
    attend = partial(mixed_attention, nn.Module(), *inputs, None, scaling=WIDTH**-0.5, layout=layout)
    flops = 4 * WIDTH * HEADS * attended(LARGE_SPANS)
    gradient = torch.randn_like(inputs[0].transpose(1, 2))

    def both() -> None:  # a compiled kernel gives its memory back in backward: no graph can be kept for another one
        torch.autograd.grad(attend()[0], inputs, gradient)

    forward_ms, both_ms = gpu_ms(attend, 5, 2), gpu_ms(both, 5, 2)
    report.number(f"{kernel.name}: forward, 8 x 1024 px", forward_ms, "ms")
    report.number(f"{kernel.name}: backward, 8 x 1024 px", both_ms - forward_ms, "ms")
    report.number(f"{kernel.name}: forward, rate", flops / forward_ms / 1e9, "TFLOP/s")
    report.number(f"{kernel.name}: forward and backward, rate", 3.5 * flops / both_ms / 1e9, "TFLOP/s")


def _cross_entropy(report: Report) -> None:
    """Of logits in pieces, as training computes it, next to float32 logits all at once."""
    torch.manual_seed(0)
    states, head = torch.randn(LABELS, 896, device=DEVICE), nn.Linear(896, VOCABULARY, bias=False, device=DEVICE)
    labels = torch.randint(VOCABULARY, (LABELS,), device=DEVICE)
    weights = torch.rand(LABELS, device=DEVICE)

    def gradients(loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = states.clone().requires_grad_()
        head.zero_grad()
        value = loss(leaf)
        value.backward()
        return [value.detach(), leaf.grad, head.weight.grad.clone()]

    def in_pieces(states: Tensor, labels: Tensor) -> Tensor:
        return losses.next_token_loss(DeferredLogits(states, head, VOCABULARY), labels, weights)

    expected = gradients(lambda s: (F.cross_entropy(head(s), labels, reduction="none") * weights).sum())
    computed = gradients(lambda s: in_pieces(s, labels))
    for name, ours, theirs in zip(("loss", "gradient of states", "gradient of head"), computed, expected, strict=True):
        report.number(f"chunked cross entropy: {name}, error", relative_error(ours, theirs), most=LOSS_ERROR)
    wrong = in_pieces(states, labels.roll(1))
    name = "chunked cross entropy: control, other labels"
    report.number(name, relative_error(wrong, expected[0]), least=LOSS_ERROR)


def _mask_blocks(report: Report) -> None:
    """The forms of the mask blocks, forward and backward: the fastest should be model/depthwise.py's COMPILED."""
    measured = measure_blocks(*BLOCK_GRID, BLOCK_ROUNDS, DEVICE, torch.bfloat16)
    for form in FORMS:
        report.number(f"mask blocks, {form}: forward and backward", measured[form]["ms"], "ms")
        report.number(f"mask blocks, {form}: first pass", measured[form]["first_s"], "s")
        report.number(f"mask blocks, {form}: difference", measured[form]["difference"], most=BLOCK_DIFFERENCE)


def _mask_losses(report: Report) -> None:
    """On the GPU next to the same formulas in float64 on the CPU, at the points that the GPU has drawn."""
    config, generator = LossConfig(), torch.Generator().manual_seed(0)
    logits = torch.randn(5, 96, 128, generator=generator)
    masks = (
        F.interpolate(logits[None] + torch.randn(1, 5, 96, 128, generator=generator), scale_factor=4)[0] > 0
    ).byte()
    joined = join_masks([mask_runs(encode_mask(mask), "a mask") for mask in masks.bool().numpy()], (384, 512))
    batch = MaskBatch((replace(joined, runs=joined.runs.to(DEVICE)),))
    output = Output(torch.empty(0), torch.empty(0), [], [logits.to(DEVICE, copy=True).requires_grad_()])
    computed = losses.mask_losses(output, batch, config)  # type: ignore[arg-type]
    sum(computed).backward()
    candidates = losses.draw_candidates(batch.seeds[0], 5, config, torch.device(DEVICE)).cpu().double()
    exact = logits.double().requires_grad_()
    expected = _exact_mask_losses(exact, masks.double(), candidates, config)
    sum(expected).backward()
    for name, ours, theirs in zip(("BCE", "Dice"), computed, expected, strict=True):
        report.number(f"mask losses: {name}, error", relative_error(ours, theirs), most=POINTS_ERROR)
    error = relative_error(output.mask_logits[0].grad.cpu(), exact.grad)
    report.number("mask losses: gradient, error", error, most=0.05)
    flipped = _exact_mask_losses(exact, masks.double().flip(1), candidates, config)
    error = relative_error(computed[1].cpu(), flipped[1])
    report.number("mask losses: control, masks upside down", error, least=POINTS_ERROR)


@dataclass(frozen=True)
class MaskBatch:
    """What the mask losses read of a batch."""

    masks: tuple[Masks, ...]
    seeds: tuple[int, ...] = (0,)


def _exact_mask_losses(logits: Tensor, masks: Tensor, candidates: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    points = losses.choose_points(logits.detach(), candidates, config)
    at_points, truth = losses.sample_points(logits, points), losses.sample_points(masks, points)
    bce = F.binary_cross_entropy_with_logits(at_points, truth, reduction="none").mean(1).sum()
    return bce, losses.dice_loss(at_points, truth).sum()
