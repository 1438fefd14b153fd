"""The score head: its statistics in closed form, its targets, and what it costs a model that has none: nothing."""

from __future__ import annotations

import math

import packed
import pytest
import torch
import torch.nn.functional as F

from pixel_sail.config import LossConfig
from pixel_sail.losses import compute_losses, mask_ious
from pixel_sail.model.score_head import ScoreHead, mask_statistics

SCORED = {"mask_scores": True}


def test_statistics_in_closed_form() -> None:
    """Three pixels of probability 0.9, one of 0.2: inside 2.7 of 3, and 0.2 beside."""
    probabilities = torch.tensor([[[0.9, 0.9], [0.9, 0.2]]])
    logits = probabilities.logit()
    ((expected, stability, area, soft_area, certainty, inside),) = mask_statistics([logits], logits).tolist()
    assert torch.tensor(expected).sigmoid() == pytest.approx(2.7 / 3.2, abs=1e-6)
    assert (stability, inside) == (pytest.approx(4 / 4), pytest.approx(0.9))  # ln(0.2 / 0.8) = -1.39: neither above -1
    assert (area, soft_area) == (pytest.approx(math.log(4 / 4), abs=1e-6), pytest.approx(math.log(3.9 / 4), abs=1e-6))
    assert certainty == pytest.approx(float(logits.abs().mean()) / 4, abs=1e-6)


def test_statistics_of_odd_masks_are_finite_and_keep_their_order() -> None:
    masks = [torch.full((1, 2, 2), -1e4), torch.randn(2, 3, 5), torch.full((1, 2, 2), 1e4)]
    together = mask_statistics(masks, masks[0])
    assert together.isfinite().all() and together.shape == (4, 6)
    assert torch.equal(together, torch.cat([mask_statistics([mask], mask) for mask in masks]))
    assert together[0, 0] < -6 < 6 < together[3, 0]  # nothing is in the empty mask, all is in the full one


def test_ious_are_those_of_the_pixels() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 4, 6), (torch.rand(3, 8, 24) > 0.4).to(torch.uint8)
    logits[2], truth[2] = -1, 0
    drawn = F.interpolate((logits > 0).float()[None], (8, 24))[0] > 0
    both, either = (drawn & (truth > 0)).sum((1, 2)), (drawn | (truth > 0)).sum((1, 2))
    torch.testing.assert_close(mask_ious(logits, truth)[:2], (both / either)[:2])
    assert mask_ious(logits, truth)[2] == 1  # both are empty


def test_presence_is_asked_before_each_answer() -> None:
    batch = packed.pack([packed.only_text(0, 20), packed.with_image(1, 3, 4, words=11), packed.with_image(2, 2, 2)])
    for index in batch.asked_index.tolist():
        assert index in batch.predict_index.tolist() and index - 1 not in batch.predict_index.tolist()
    assert batch.with_mask.tolist() == [0, 1, 1] and batch.counts()["answer"] == 3


def test_two_turns_of_a_sequence_are_two_questions() -> None:
    one = packed.with_image(1, 2, 2, words=12, masks=1)
    labels = one.labels.clone()
    labels[-4] = -100  # the answer ends before, and the second one has the mask
    batch = packed.pack([type(one)(**{**vars(one), "labels": labels})])
    assert batch.with_mask.tolist() == [0, 1]
    assert batch.asked_index.tolist() == [len(labels) - 7, len(labels) - 4]


def test_nothing_flows_back_and_nothing_else_changes() -> None:
    batch = packed.pack([packed.only_text(0, 20), packed.with_image(1, 3, 4), packed.with_image(2, 5, 4, masks=1)])
    model, bare = packed.small_model(SCORED), packed.small_model()
    names = bare.state_dict().keys()
    assert model.state_dict().keys() - names == {f"score_head.{name}" for name in ScoreHead(32).state_dict()}
    assert all(torch.equal(model.state_dict()[name], bare.state_dict()[name]) for name in names)
    output, plain = model(batch), bare(batch)
    assert torch.equal(output.mask_logits[1], plain.mask_logits[1]) and plain.score_logits is None
    assert (output.score_logits.shape, output.presence_logits.shape) == ((4,), (3,))
    config = LossConfig(points=8)
    assert compute_losses(plain, batch, config).keys() == {"lm", "bce", "dice"}
    undecided = compute_losses(output, batch, config)["presence"]
    assert undecided.item() == pytest.approx(3 * math.log(2))  # it starts so
    for parameter in model.score_head.parameters():
        torch.nn.init.normal_(parameter)
    losses = compute_losses(model(batch), batch, config)
    (losses["score"] + losses["presence"]).backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert len(reached) == 8 and all(name.startswith("score_head.") for name in reached)


def test_scores_do_not_depend_on_packing() -> None:
    torch.manual_seed(1)
    head = ScoreHead(8)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    masks, states, asked = [torch.randn(2, 3, 3), torch.randn(1, 4, 3)], torch.randn(3, 8), torch.randn(2, 8)
    scores, presence = head(masks, states, asked)
    torch.testing.assert_close(scores[:2], head(masks[:1], states[:2], asked[:1])[0])
    torch.testing.assert_close(scores[2:], head(masks[1:], states[2:], asked[1:])[0])
    torch.testing.assert_close(presence[1:], head([], states[:0], asked[1:])[1])


def test_a_batch_without_masks_uses_all_weights() -> None:
    model = packed.small_model(SCORED)
    output = model(packed.pack([packed.only_text(0, 20)]))
    (output.score_logits.sum() + output.presence_logits.sum()).backward()
    assert all(weight.grad is not None for weight in model.score_head.parameters())
