"""Time of the mask blocks of the 0.5B recipe: uncompiled, and compiled with each form of the depthwise convolution.

It decides depthwise.COMPILED, which nobody has measured on a GPU yet.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pixel_sail.architecture import Architecture
from pixel_sail.model import depthwise
from pixel_sail.model.mask_head import MaskHead

HIDDEN = 896
ARCHITECTURE = Architecture(patch_size=16, mask_stride=4, mask_dim=512)
FORMS = ("uncompiled", "shifts", "convolution")
AT_ONCE = 5  # passes between two looks at the clock: a GPU waits for its host only at their start


def measure_blocks(
    images: int, height: int, width: int, repeats: int, device: str, dtype: torch.dtype, backend: str = "inductor"
) -> dict[str, Any]:
    """Of each form: the first pass in s, and the median ms of a pass over `repeats` interleaved rounds.

    A pass is forward and backward, for `images` of `height` x `width` patches. "difference": the largest from the
    uncompiled output, in parts of its largest value.
    """
    torch.manual_seed(0)
    plain = MaskHead(ARCHITECTURE, HIDDEN).to(device, dtype)
    for block in plain.blocks:
        torch.nn.init.normal_(block.depthwise.weight, std=1 / 3)  # it starts as the identity, which shows no difference
    x = torch.randn(images, height, width, HIDDEN, device=device, dtype=dtype)
    heads = {form: MaskHead(ARCHITECTURE, HIDDEN).to(device, dtype) for form in FORMS}
    for form, head in heads.items():
        head.load_state_dict(plain.state_dict())
        if form != "uncompiled":
            head.compile_blocks(backend=backend)
    first_s = {form: _seconds(form, head, x, 1) for form, head in heads.items()}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats):
        for form, head in heads.items():
            times[form].append(_seconds(form, head, x, AT_ONCE) / AT_ONCE)
    expected = _output("uncompiled", heads["uncompiled"], x).detach()
    result = {}
    for form, head in heads.items():
        difference = (_output(form, head, x).detach() - expected).abs().max() / expected.abs().max()
        result[form] = {"first_s": round(first_s[form], 2), "ms": round(median(times[form]) * 1e3, 3)}
        result[form]["difference"] = float(difference)
    sizes = {"images": images, "height": height, "width": width, "device": device, "dtype": str(dtype)}
    return {"bench": "blocks", **sizes, **result}


def _output(form: str, head: MaskHead, x: Tensor) -> Tensor:
    chosen = depthwise.COMPILED
    depthwise.COMPILED = form  # the compiler looks at it in each pass
    try:
        return head.upsample(x.detach().requires_grad_().unbind())
    finally:
        depthwise.COMPILED = chosen


def _seconds(form: str, head: MaskHead, x: Tensor, passes: int) -> float:
    """Of `passes` forward and backward passes."""
    _synchronize(x)
    start = time.perf_counter()
    for _ in range(passes):
        head.zero_grad(set_to_none=True)
        out = _output(form, head, x)
        out.backward(out.detach())
    _synchronize(x)
    return time.perf_counter() - start


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
