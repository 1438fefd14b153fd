"""Patch embedding in two steps: the sub-patches are the squares of the picture, in order."""

from __future__ import annotations

import pytest
import torch

from pixel_sail.model.visual_prompt import PatchFusion


def test_sub_patches_are_a_convolution_of_the_patch() -> None:
    torch.manual_seed(0)
    fusion = PatchFusion(8, 16, sub_patch_size=4, sub_patch_width=6)
    patches = torch.randn(5, 3, 8, 8)  # rows (channel, row, column)
    kernel = fusion.sub_patch_linear.weight.view(6, 3, 4, 4)
    expected = torch.nn.functional.gelu(
        torch.nn.functional.conv2d(patches, kernel, fusion.sub_patch_linear.bias, stride=4)
    )
    expected = expected.permute(0, 2, 3, 1).flatten(1)  # (5, 2 * 2 * 6): the squares row by row
    torch.testing.assert_close(fusion._patch_values(patches.flatten(1), []), expected)
    assert fusion.patch_linear.weight.shape == (16, 24)


def test_pixels_are_embedded_beside_what_the_stem_sees() -> None:
    fusion = PatchFusion(8, 16, stem_widths=[4, 6])
    patches, grids = torch.randn(6, 192), [(2, 3)]
    values = torch.cat([patches, fusion.stem(patches, grids)], dim=1)
    assert torch.equal(fusion._patch_values(patches, grids), values)
    assert fusion.patch_linear.weight.shape == (16, 192 + 6 * 4)


def test_stem_and_sub_patches_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not through both"):
        PatchFusion(8, 16, sub_patch_size=4, sub_patch_width=6, stem_widths=[4])


def test_whole_patches_need_no_more_weights() -> None:
    assert {name for name, _ in PatchFusion(8, 16).named_parameters()} == {
        "patch_linear.weight",
        "prompt_linear.weight",
    }


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="sub-patches of 3 pixels and width 6 do not divide patches of 8 pixels"):
        PatchFusion(8, 16, 3, 6)
