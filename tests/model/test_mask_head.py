"""How the mask head starts: a model that is to learn fine masks must not start worse than one with masks of patches."""

from __future__ import annotations

import torch

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.model.mask_head import MaskHead, Upsample2x
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.convert.new_parts import new_parts
from pixel_sail.weights.convert.scratch import from_scratch


def scratch_model() -> PixelSail:
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, mlp_size=32, vocab_size=400)
    section, architecture = (
        ModelSection(scratch=scratch),
        Architecture(patch_size=8, mask_stride=2, mask_dim=16, max_side_px=64),
    )
    return from_scratch(section, architecture, ["the red mug"] * 3, "Segment {expression}.")[0]


def test_every_mask_starts_as_one_of_patches() -> None:
    """All 16 pixels of a patch have nearly its logit, in a model from scratch and in new parts of any other base."""
    model = scratch_model()
    converted = MaskHead(model.config.architecture, 32)
    parts = {name: part for name, part in new_parts(model.config).items() if name.startswith("mask_head.")}
    converted.load_state_dict({name.removeprefix("mask_head."): part.derive() for name, part in parts.items()})
    generator = torch.Generator().manual_seed(1)
    for head in (model.mask_head, converted):
        patches, seg = torch.randn(3, 5, 32, generator=generator), torch.randn(2, 32, generator=generator)
        (logits,), _ = head([patches], [seg])
        assert logits.shape == (2, 12, 20) and logits.std() > 0.01
        in_patch = logits.view(2, 3, 4, 5, 4).permute(0, 1, 3, 2, 4).flatten(3)  # (K, h, w, 16)
        assert 0 < in_patch.std(-1).mean() < 0.25 * in_patch.mean(-1).std()


def test_the_places_of_a_patch_part_at_the_first_step() -> None:
    """What starts alike does not stay alike: the gradients of the four places differ."""
    head = scratch_model().mask_head
    generator = torch.Generator().manual_seed(1)
    patches, seg = torch.randn(3, 5, 32, generator=generator), torch.randn(1, 32, generator=generator)
    (logits,), _ = head([patches], [seg])
    target = torch.rand(logits.shape, generator=generator).round()
    torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
    for block in head.blocks:
        gradient = block.up.weight.grad.flatten(2)
        assert (gradient - gradient[..., :1]).abs().amax(dim=(0, 1))[1:].min() > 1e-6


def test_upsampling_as_a_matmul_is_the_transposed_convolution() -> None:
    """Values and gradients. Heads of constant width use it; the others keep their last bits."""
    torch.manual_seed(0)
    up = Upsample2x(6, 5, as_matmul=True).double()
    x, results = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True), []
    for up.as_matmul in (True, False):
        out = up(x)
        assert out.shape == (2, 5, 6, 8)
        direction = torch.arange(out.numel(), dtype=torch.float64).view_as(out).sin()
        results.append((out, *torch.autograd.grad((out * direction).sum(), [x, up.weight, up.bias])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    parts = {"patch_size": 8, "mask_stride": 2, "mask_dim": 16}
    constant, tapered = MaskHead(Architecture(**parts, mask_channels=[96] * 3), 96), MaskHead(Architecture(**parts), 96)
    assert [block.up.as_matmul for head in (constant, tapered) for block in head.blocks] == [True] * 2 + [False] * 2
