"""A stem of small overlapping convolutions, so that a shape looks the same wherever it lies on the patch grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ConvStem(nn.Module):
    """Patches (sum N, 3 P P) of whole images -> values (sum N, C s s) to embed for each patch.

    Each stage halves the image (3x3 convolution, stride 2, GELU); from the second on a residual 3x3 convolution
    follows. After all stages s x s cells of C = widths[-1] channels remain of a patch, and are embedded together. After
    "Early Convolutions Help Transformers See Better" (arXiv 2106.14881); not part of Pixel-SAIL.
    """

    def __init__(self, patch_size: int, widths: Sequence[int]):
        super().__init__()
        self.patch_size = patch_size
        self.cells = patch_size // 2 ** len(widths)
        self.values = widths[-1] * self.cells**2
        self.down = nn.ModuleList(MatrixConv(a, b, stride=2) for a, b in zip([3, *widths], widths, strict=False))
        self.more = nn.ModuleList(MatrixConv(width, width, stride=1) for width in widths[1:])

    def forward(self, patches: Tensor, grids_hw: Sequence[tuple[int, int]]) -> Tensor:
        """`grids_hw`: (h, w) of the image of each sequence, (0, 0) where it has none."""
        grids = [grid for grid in grids_hw if grid[0]]
        if not grids:  # use all weights: every rank of ZeRO-3 must gather the same ones
            return self._convolve(patches.new_zeros(1, 3, self.patch_size, self.patch_size), [(1, 1)])[:0]
        height, width = (max(grid[axis] for grid in grids) for axis in (0, 1))
        canvas = patches.new_zeros(len(grids), height, width, patches.shape[1])
        for image, part, (h, w) in zip(canvas, patches.split([h * w for h, w in grids]), grids, strict=True):
            image[:h, :w] = part.view(h, w, -1)
        size = self.patch_size
        return self._convolve(rearrange(canvas, "b h w (c y x) -> b c (h y) (w x)", y=size, x=size), grids)

    def _convolve(self, images: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Values beyond the border of an image stay 0, as if the image were alone and padded with zeros."""
        cells = self.patch_size
        for stage, down in enumerate(self.down):
            cells //= 2
            inside = _inside(grids, cells, images)
            images = F.gelu(down(images)) * inside
            if stage:
                images = images + F.gelu(self.more[stage - 1](images)) * inside
        values = rearrange(images, "b c (h y) (w x) -> b h w (c y x)", y=cells, x=cells)
        return torch.cat([image[:h, :w].flatten(0, 1) for image, (h, w) in zip(values, grids, strict=True)])


class MatrixConv(nn.Module):
    """A 3x3 convolution whose kernels are the rows of a matrix (out, 9 in), so that Muon can train it as a matrix."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.inputs, self.stride = inputs, stride
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return F.conv2d(images, self.weight.view(-1, self.inputs, 3, 3), self.bias, self.stride, padding=1)


def _inside(grids: Sequence[tuple[int, int]], cells: int, images: Tensor) -> Tensor | float:
    """1 inside each image and 0 in the padding, after `images` are halved: (B, 1, height, width); 1.0 if all is inside.

    In the dtype of `images`. Filled on the device: a tensor made of `grids` would make it wait for the host.
    """
    height, width = images.shape[2] // 2, images.shape[3] // 2
    if all((h * cells, w * cells) == (height, width) for h, w in grids):
        return 1.0
    inside = images.new_zeros(len(grids), 1, height, width)
    for image, (h, w) in zip(inside, grids, strict=True):
        image[:, : h * cells, : w * cells] = 1
    return inside
