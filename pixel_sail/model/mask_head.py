"""Masks from the transformer's states: learnable upsampling of patch states, and a dot product with [SEG] states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_sail.architecture import MAX_MASK_CHANNELS, Architecture
from pixel_sail.errors import UserError
from pixel_sail.model.depthwise import Depthwise

# How much the four pixels of a 2x2 cell share at the start. At 1 they would be equal, and which of equal pixels is the
# most uncertain would be a matter of rounding.
ALIKE = 0.9


class Upsample2x(nn.ConvTranspose2d):
    """(n, h, w, c) -> (n, c', 2h, 2w). At the start it nearly repeats its input (after ICNR, arXiv 1707.02937).

    With independent random weights for the four pixels of a cell, everything would have to be learned four times.

    `as_matmul`: the same sums by `by_matmul`, which is faster.
    """

    def __init__(self, channels_in: int, channels_out: int, as_matmul: bool):
        super().__init__(channels_in, channels_out, kernel_size=2, stride=2)
        self.as_matmul = as_matmul

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight.lerp_(self.weight[..., :1, :1].expand_as(self.weight), ALIKE)

    def forward(self, x: Tensor) -> Tensor:
        if not self.as_matmul:
            return super().forward(x.permute(0, 3, 1, 2))
        return self.by_matmul(x.flatten(0, 1)).unflatten(0, (-1, 2 * x.shape[1])).permute(0, 3, 1, 2)

    def by_matmul(self, x: Tensor) -> Tensor:
        """(rows, w, c) -> (2 rows, 2w, c'): one product of matrices, whose columns then become pixels."""
        (rows, w, _), k = x.shape, self.out_channels
        cells = (x @ self.weight.permute(0, 2, 3, 1).flatten(1)).view(rows, w, 2, 2, k)
        pixels = cells.transpose(1, 2).reshape(2 * rows, 2 * w, k)
        return pixels + self.bias.to(pixels.dtype)  # in bf16 under autocast


class UpsampleBlock(nn.Module):
    """Transposed convolution, GELU, depthwise 3x3, pointwise, channel LayerNorm."""

    def __init__(self, channels_in: int, channels_out: int, as_matmul: bool = False):
        super().__init__()
        self.up = Upsample2x(channels_in, channels_out, as_matmul)
        self.depthwise = Depthwise(channels_out)
        self.pointwise = nn.Linear(channels_out, channels_out)
        self.norm = nn.LayerNorm(channels_out, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(n, h, w, c) -> (n, 2h, 2w, c')."""
        x = self.depthwise(F.gelu(self.up(x)))
        return self.norm(self.pointwise(x.permute(0, 2, 3, 1)))

    def in_rows(self, x: Tensor, height: int) -> Tensor:
        """The same of the rows of images of `height`: (n h, w, c) -> (2 n h, 2w, c'). This is what is compiled."""
        x = self.depthwise.in_rows(F.gelu(self.up.by_matmul(x)), 2 * height)
        return self.norm(self.pointwise(x))


class MaskHead(nn.Module):
    """Mask logits of one packed batch. Its layers are listed in docs/model.md."""

    def __init__(self, architecture: Architecture, hidden_size: int):
        """Raises UserError if mask_channels does not start at min(hidden size, 1024)."""
        super().__init__()
        first, channels, mask_dim = (
            min(hidden_size, MAX_MASK_CHANNELS),
            architecture.channels(hidden_size),
            architecture.mask_dim,
        )
        if channels[0] != first:
            raise UserError(
                f"mask_channels must start at min(hidden size, {MAX_MASK_CHANNELS}) = {first}, got {channels[0]}"
            )
        self.reduce = None
        if hidden_size > MAX_MASK_CHANNELS:
            self.reduce = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, first))
        # Heads of constant width, as in research checkpoints, gain most: a quarter of the time of a block. Tapered ones
        # gain less and keep the convolution, whose last bits the recorded runs have.
        as_matmul = len(set(channels)) == 1
        self.blocks = nn.ModuleList(
            UpsampleBlock(a, b, as_matmul) for a, b in zip(channels, channels[1:], strict=False)
        )
        self.compiled: Callable[[nn.ModuleList, Tensor, int], Tensor] | None = None
        self.pixel_projector = _projector(channels[-1], channels[-1], mask_dim)
        self.seg_projector = _projector(hidden_size, first, mask_dim)

    def forward(
        self, patch_states: Sequence[Tensor], seg_states: Sequence[Tensor], with_features: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (K, h', w') of each image, and its features (S, h', w') if `with_features`.

        `patch_states`: (h, w, D) of each image; `seg_states`: (K, D) of each image, K may be 0. Images of one grid go
        through the blocks together. Without `with_features`, the last linear is applied to the few [SEG] embeddings
        instead of every pixel: the logits need only the dot products.
        """
        counts = [states.shape[0] for states in seg_states]
        embeddings = self.seg_projector(torch.cat(list(seg_states))).split(counts)
        logits: list[Tensor] = [states.new_empty(0) for states in patch_states]
        features: list[Tensor] = list(logits)
        last = self.pixel_projector[-1]
        for members in _same_shape(patch_states):
            pixels = self.pixel_projector[:-1](self.upsample([patch_states[i] for i in members]))
            for i, pixel in zip(members, pixels, strict=True):  # (h', w', c)
                if with_features:
                    feature = last(pixel)
                    features[i] = feature.permute(2, 0, 1)
                    logits[i] = torch.einsum("ks,hws->khw", embeddings[i], feature)
                else:
                    bias = embeddings[i] @ last.bias
                    logits[i] = torch.einsum("kc,hwc->khw", embeddings[i] @ last.weight, pixel) + bias[:, None, None]
        return logits, features

    def compile_blocks(self, **options: Any) -> None:
        """Compile all blocks into one graph, for any number of images of any size; `options` are torch.compile's.

        An image with a side of one patch has a graph of its own.
        """
        symbolic_shapes.use_duck_shape = False  # sizes that are equal in the first batch may differ in the next
        self.compiled = torch.compile(_in_rows, dynamic=True, **options)

    def upsample(self, images: Sequence[Tensor]) -> Tensor:
        """Images (h, w, D) of one grid -> (n, h', w', c)."""
        if self.compiled is not None and self.training:
            # Rows of images, and no view: Dynamo would compile one image and several for themselves.
            rows = torch.cat(list(images))
            rows = rows if self.reduce is None else self.reduce(rows)
            return self.compiled(self.blocks, rows, images[0].shape[0]).unflatten(0, (len(images), -1))
        x = torch.stack(list(images))
        x = x if self.reduce is None else self.reduce(x)
        for block in self.blocks:
            x = block(x)
        return x


def _in_rows(blocks: nn.ModuleList, x: Tensor, height: int) -> Tensor:
    for block in blocks:
        x = block.in_rows(x, height)
        height *= 2
    return x


def _projector(width_in: int, width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Linear(width, width_out))


def _same_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape, []).append(index)
    return list(groups.values())
