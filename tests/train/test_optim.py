"""Learning rates and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pixel_sail.config import TrainConfig
from pixel_sail.train.optim import build_optimizer, lr_at, parameter_groups, set_lr


def test_schedule() -> None:
    train = TrainConfig(steps=100, batch_size=1, lr=1.0, warmup_fraction=0.1)
    rates = [lr_at(step, train) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[9] == pytest.approx(10 / 11)
    assert rates[10] == 1.0 == max(rates)
    assert rates[55] == pytest.approx(0.5)  # half of the 90 cosine steps
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert lr_at(0, TrainConfig(steps=1, batch_size=1, lr=1.0)) == 1.0


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language_model = nn.ModuleDict(
            {"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 5), "norm": nn.LayerNorm(4)}
        )
        self.language_model["linear"].weight = self.language_model["embed"].weight  # tied, as in small language models
        self.mask_head = nn.Conv2d(4, 4, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_parameter_groups() -> None:
    model = TinyModel()
    train = TrainConfig(steps=1, batch_size=1, weight_decay=0.3, new_parts_lr_scale=10.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        (group["weight_decay"], group["lr_scale"]): {names[id(p)] for p in group["params"]}
        for group in parameter_groups(model, train)
    }
    lm = "language_model."
    assert groups == {
        (0.0, 1.0): {f"{lm}embed.weight", f"{lm}linear.bias", f"{lm}norm.weight", f"{lm}norm.bias"},
        (0.3, 10.0): {"mask_head.weight"},
        (0.0, 10.0): {"mask_head.bias"},
    }
    optimizer = build_optimizer(parameter_groups(model, train), train)
    set_lr(optimizer, 0.01)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.01, 0.1, 0.1])
    assert isinstance(optimizer, torch.optim.AdamW)
