"""A 3x3 convolution of each channel by itself, in the form that is fastest where it runs.

Uncompiled it is torch's convolution. Inductor would make a new graph of that for every image size, so compiled it is
one of two forms that know no size: sums of shifted images, which Inductor fuses with what is around them, or torch's
convolution as an operator that Inductor does not look into. `bench.py blocks` measures all three.
"""

from __future__ import annotations

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

    def in_rows(self, x: Tensor, height: int) -> Tensor:
        """(n h, w, c) -> the same: the rows of images of `height`, one below the other. This is what is compiled."""
        form = by_shifts if COMPILED == "shifts" else by_convolution
        return form(x, self.weight, self.bias, height)


def by_shifts(x: Tensor, weight: Tensor, bias: Tensor, height: int) -> Tensor:
    """`x` (n h, w, c), `weight` (c, 1, 3, 3), `bias` (c,) -> like `x`; sums in float32.

    Fast only where a compiler makes one kernel of it: as it is written, it makes ten images of the one.
    """
    rows, w, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    padded, taps, total = F.pad(x, (0, 0, 1, 1, 1, 1)).to(dtype), weight.to(dtype), bias.to(dtype)
    row = (torch.arange(rows, device=x.device) % height)[:, None, None]
    for i, inside in enumerate((row > 0, None, row < height - 1)):  # not the last row of the image above, and so on
        line = sum(padded[i : i + rows, j : j + w] * taps[:, 0, i, j] for j in range(3))
        total = total + (line if inside is None else torch.where(inside, line, 0))
    return total.to(x.dtype)


def by_convolution(x: Tensor, weight: Tensor, bias: Tensor, height: int) -> Tensor:
    """The same by torch's convolution, which computes in the dtype of `x`. A compiler calls it as it is."""
    return _convolution(x, weight.to(x.dtype), bias.to(x.dtype), height)


def _as_images(rows: Tensor, height: int) -> Tensor:
    """(n h, w, c) -> (n, c, h, w), a view."""
    return rows.unflatten(0, (-1, height)).permute(0, 3, 1, 2)


def _as_rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous().flatten(0, 1)


@torch.library.custom_op("pixel_sail::depthwise", mutates_args=())
def _convolution(x: Tensor, weight: Tensor, bias: Tensor, height: int) -> Tensor:
    return _as_rows(F.conv2d(_as_images(x, height), weight, bias, padding=1, groups=len(bias)))


@torch.library.custom_op("pixel_sail::depthwise_backward", mutates_args=())
def _backward(gradient: Tensor, x: Tensor, weight: Tensor, height: int) -> tuple[Tensor, Tensor, Tensor]:
    images, c = [_as_images(tensor, height) for tensor in (gradient, x)], len(weight)
    ones, zeros, wanted = [1, 1], [0, 0], [True, True, True]
    dx, dw, db = torch.ops.aten.convolution_backward(*images, weight, [c], ones, ones, ones, False, zeros, c, wanted)
    return _as_rows(dx), dw, db


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, height: int) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, height: int) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.height = inputs[3]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(gradient, *ctx.saved_tensors, ctx.height), None


_convolution.register_autograd(_gradients, setup_context=_keep)
