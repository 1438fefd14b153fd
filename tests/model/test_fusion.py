"""What is embedded of a patch: its sub-patches in order, what a stem sees around it, where it lies."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from pixel_sail.architecture import Architecture, SmallImages
from pixel_sail.model.patch_positions import position_values
from pixel_sail.model.visual_prompt import PatchFusion


def parts(**fields: Any) -> Architecture:
    return Architecture(patch_size=8, **fields)


def test_sub_patches_are_a_convolution_of_the_patch() -> None:
    torch.manual_seed(0)
    fusion = PatchFusion(parts(sub_patch_size=4, sub_patch_width=6), 16)
    patches = torch.randn(5, 3, 8, 8)  # rows (channel, row, column)
    kernel = fusion.sub_patch_linear.weight.view(6, 3, 4, 4)
    expected = torch.nn.functional.gelu(
        torch.nn.functional.conv2d(patches, kernel, fusion.sub_patch_linear.bias, stride=4)
    )
    expected = expected.permute(0, 2, 3, 1).flatten(1)  # (5, 2 * 2 * 6): the squares row by row
    torch.testing.assert_close(fusion._patch_values(patches.flatten(1), []), expected)
    assert fusion.patch_linear.weight.shape == (16, 24)


def test_pixels_are_embedded_beside_what_the_stem_sees() -> None:
    fusion = PatchFusion(parts(small_images=SmallImages(stem_widths=[4, 6])), 16)
    patches, grids = torch.randn(6, 192), [(2, 3)]
    values = torch.cat([patches, fusion.stem(patches, grids)], dim=1)
    assert torch.equal(fusion._patch_values(patches, grids), values)
    assert fusion.patch_linear.weight.shape == (16, 192 + 6 * 4)


def test_whole_patches_need_no_more_weights() -> None:
    names = {name for name, _ in PatchFusion(parts(), 16).named_parameters()}
    assert names == {"patch_linear.weight", "prompt_linear.weight"}


def test_position_values_in_closed_form() -> None:
    """Two rows, one column: t is 1/4, 3/4 along the rows and 1/2 along the columns. Images follow one another."""
    values = position_values([(2, 1), (0, 0), (1, 3)], like=torch.empty(0, dtype=torch.float64))
    assert values.shape == (5, 8)
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, 0, -half, -1], [-half, 0, half, -1]], dtype=torch.float64)
    torch.testing.assert_close(values[:2, :4], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(values[0, 4:], torch.tensor([0.0, -1, 0, 1], dtype=torch.float64), atol=1e-6, rtol=0)
    turned = values[2:, 4:] * torch.tensor([-1.0, 1, -1, 1])  # seen in a mirror, odd waves change their sign
    torch.testing.assert_close(turned.flip(0), values[2:, 4:])


def test_position_is_embedded_beside_the_pixels() -> None:
    """The same pixels everywhere: what differs between two patches is the linear of where they lie."""
    small = SmallImages(stem_widths=[4], patch_positions=True, position_scale=3.0)
    fusion = PatchFusion(parts(small_images=small), 16)
    grids = ((2, 3), (1, 2))
    batch = SimpleNamespace(patches=torch.zeros(8, 192), grids_hw=grids)
    places = position_values(grids, like=batch.patches)
    expected = 3 * places @ fusion.patch_linear.weight[:, -8:].T
    torch.testing.assert_close(fusion.embed_patches(batch), expected, atol=1e-6, rtol=0)
    assert expected.std() > 0
