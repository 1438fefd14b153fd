"""Losses: closed forms, and independence of packing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pixel_sail.config import LossConfig
from pixel_sail.data.masks import encode_mask, mask_runs
from pixel_sail.data.runs import join_masks
from pixel_sail.losses import choose_points, dice_loss, draw_candidates, mask_losses, next_token_loss, sample_points
from pixel_sail.types import Batch, Masks, Output


def test_next_token_loss_is_a_weighted_sum() -> None:
    logits = torch.zeros(3, 8)
    logits[2, 5] = math.log(7.0)  # probability 7 / 14 for label 5
    loss = next_token_loss(logits, torch.tensor([0, 3, 5]), torch.tensor([1.0, 0.5, 2.0]))
    assert float(loss) == pytest.approx(1.5 * math.log(8) + 2 * math.log(2))


def test_dice_closed_forms() -> None:
    certain = torch.tensor([[100.0, 100.0, -100.0, -100.0]])
    assert float(dice_loss(certain, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))) == pytest.approx(0.0)
    assert float(dice_loss(certain, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))) == pytest.approx(1 - 1 / 5)
    assert float(dice_loss(torch.zeros(1, 4), torch.ones(1, 4))) == pytest.approx(1 - (2 * 2 + 1) / (2 + 4 + 1))


def test_points_are_read_at_pixel_centres() -> None:
    values = torch.arange(6.0).view(1, 2, 3)
    centres = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])
    assert sample_points(values, centres)[0].tolist() == pytest.approx([0.0, 5.0, 2.5], abs=1e-6)


def test_the_most_uncertain_points_are_chosen() -> None:
    """Logits rise from -4 to 4 over the width: the chosen share lies where the logits are nearest to zero."""
    config = LossConfig(points=100)
    logits = torch.linspace(-4, 4, 64).expand(1, 64, 64)
    candidates = draw_candidates(0, 1, config, torch.device("cpu"))
    assert candidates.shape == (1, 325, 2)
    points = choose_points(logits, candidates, config)
    assert points.shape == (1, 100, 2)
    certainty = sample_points(logits, candidates[:, :300])[0].abs().sort().values
    chosen = sample_points(logits, points[:, :75])[0].abs().sort().values
    assert torch.equal(chosen, certainty[:75])
    assert float((points[0, :75, 0] - 0.5).abs().median()) < 0.1  # near the middle; the edges are padded with zeros
    assert torch.equal(points[0, 75:], candidates[0, 300:])


def of_pixels(masks: torch.Tensor) -> Masks:
    """(K, H, W) uint8 -> the same masks as they travel."""
    return join_masks([mask_runs(encode_mask(mask.numpy()), "a") for mask in masks], tuple(masks.shape[1:]))


def batch_of(masks: list[torch.Tensor], seeds: list[int]) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(
        keys=tuple("abc"[: len(masks)]),
        seeds=tuple(seeds),
        spans=(),
        grids_hw=(),
        masks_per_image=tuple(len(m) for m in masks),
        input_ids=none,
        position_ids=none,
        patches=none,
        patch_index=none,
        prompt_ids=none,
        prompted=none,
        predict_index=none,
        labels=none,
        label_weights=none,
        seg_index=none,
        masks=tuple(of_pixels(mask) for mask in masks),
    )


def test_mask_losses_do_not_depend_on_packing() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(2, 8, 8), torch.randn(0, 8, 8), torch.randn(3, 8, 8)]
    masks = [(torch.rand(len(x), 16, 16) > 0.5).to(torch.uint8) for x in logits]
    config = LossConfig(points=50)
    empty = torch.empty(0)
    together = mask_losses(Output(empty, empty, [], logits), batch_of(masks, [5, 6, 7]), config)
    alone = [
        mask_losses(Output(empty, empty, [], [x]), batch_of([m], [s]), config)
        for x, m, s in zip(logits, masks, [5, 6, 7], strict=True)
    ]
    for term in (0, 1):
        torch.testing.assert_close(together[term], sum(losses[term] for losses in alone))
    assert float(alone[1][0]) == 0 == float(alone[1][1])


def test_mask_losses_are_to_the_bit_those_of_the_pixels() -> None:
    """Masks travel as runs, by columns; losses read pixels, by rows."""
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 9, 12), (torch.rand(3, 36, 48) > 0.4).to(torch.uint8)
    config = LossConfig(points=200)
    bce, dice = mask_losses(Output(torch.empty(0), torch.empty(0), [], [logits]), batch_of([masks], [7]), config)
    points = choose_points(logits, draw_candidates(7, 3, config, logits.device), config)
    at_points, truth = sample_points(logits, points), sample_points(masks.float(), points)
    expected = F.binary_cross_entropy_with_logits(at_points, truth, reduction="none").mean(1).sum()
    assert torch.equal(bce, expected) and torch.equal(dice, dice_loss(at_points, truth).sum())
