"""A 3x3 convolution of each channel by itself, in the form that is fastest where it runs.

Uncompiled it is torch's convolution. Inductor would make a new graph of that for every image size, so compiled it is
one of two forms that know no size: sums of shifted images, which Inductor fuses with what is around them, or torch's
convolution as an operator that Inductor does not look into. `bench.py blocks` measures all three.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMPILED: Literal["shifts", "convolution"] = "shifts"


class Depthwise(nn.Conv2d):
    """(n, c, h, w) -> (n, c, h, w), zeros around the image; the identity at the start."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)

    def reset_parameters(self) -> None:
        nn.init.dirac_(self.weight, groups=self.groups)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        form = by_shifts if COMPILED == "shifts" else by_convolution
        return form(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def by_shifts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` (n, h, w, c), `weight` (c, 1, 3, 3), `bias` (c,) -> (n, h, w, c) in the dtype of `x`; sums in float32.

    Fast only where a compiler makes one kernel of it: as it is written, it makes ten images of the one.
    """
    h, w = x.shape[1:3]
    dtype = torch.promote_types(x.dtype, torch.float32)
    padded, taps, total = F.pad(x, (0, 0, 1, 1, 1, 1)).to(dtype), weight.to(dtype), bias.to(dtype)
    for i, j in product(range(3), range(3)):
        total = total + padded[:, i : i + h, j : j + w] * taps[:, 0, i, j]
    return total.to(x.dtype)


def by_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by torch's convolution, which computes in the dtype of `x`. A compiler calls it as it is."""
    return _convolution(x, weight.to(x.dtype), bias.to(x.dtype))


@torch.library.custom_op("pixel_sail::depthwise", mutates_args=())
def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(bias))
    return out.permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op("pixel_sail::depthwise_backward", mutates_args=())
def _backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels_first = (tensor.permute(0, 3, 1, 2) for tensor in (gradient, x))
    c = len(weight)
    ones, zeros, wanted = [1, 1], [0, 0], [True, True, True]
    dx, dw, db = torch.ops.aten.convolution_backward(
        *channels_first, weight, [c], ones, ones, ones, False, zeros, c, wanted
    )
    return dx.permute(0, 2, 3, 1).contiguous(), dw, db


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(gradient, *ctx.saved_tensors)


_convolution.register_autograd(_gradients, setup_context=_keep)
