"""Learning rates and parameter groups."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pixel_sail.config import ConfigError, MuonConfig, TrainConfig
from pixel_sail.train import muon
from pixel_sail.train.optim import build_optimizer, lr_at, parameter_groups, set_lr


def test_schedule() -> None:
    train = TrainConfig(steps=100, batch_size=1, lr=1.0, warmup_fraction=0.1)
    rates = [lr_at(step, train.steps, train.lr, train.warmup_fraction) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[9] == pytest.approx(10 / 11)
    assert rates[10] == 1.0 == max(rates)
    assert rates[55] == pytest.approx(0.5)  # half of the 90 cosine steps
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert lr_at(0, 1, 1.0, 0.05) == 1.0


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
    faster = TrainConfig(steps=1, batch_size=1, muon=MuonConfig(embeddings_lr_scale=5.0))
    scales = {names[id(p)]: g["lr_scale"] for g in parameter_groups(model, faster) for p in g["params"]}
    assert [name for name, scale in scales.items() if scale == 5.0] == [f"{lm}embed.weight"]


def tiny_parts() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 6),
            "linear": nn.Linear(6, 9),
            "alike": nn.Linear(6, 9),
            "wide": nn.Linear(9, 6, bias=False),
            "conv": nn.Conv2d(2, 3, 3),
            "depthwise": nn.Conv2d(3, 3, 3, groups=3),
        }
    )


def muon_steps(resume_after: int | None) -> list[torch.Tensor]:
    """Weights after four steps on fixed gradients; a fresh optimizer takes over the state after `resume_after`."""
    torch.manual_seed(0)
    model = tiny_parts()
    train = TrainConfig(steps=4, batch_size=1, muon=MuonConfig(), weight_decay=0.1)
    optimizer = build_optimizer(parameter_groups(model, train), train)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_lr(optimizer, 0.01)
        optimizer.step()
        if step == resume_after:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(parameter_groups(model, train), train)
            optimizer.load_state_dict(saved)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_muon_is_torchs_muon_and_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of one shape are learned together, each as if alone; kernels as (output channels, everything else)."""
    monkeypatch.setattr("pixel_sail.train.muon.has_bf16_units", lambda: True)  # torch's takes bf16 on any CPU
    torch.manual_seed(0)
    model = tiny_parts()
    kernel = nn.Parameter(model["conv"].weight.detach().reshape(3, -1).clone())
    matrices = [model[name].weight for name in ("linear", "alike", "wide")] + [kernel]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    depthwise = {"params": [model["depthwise"].weight], "weight_decay": 0.1}
    biases = [model[name].bias for name in ("linear", "alike", "conv", "depthwise")]
    others = [model["embed"].weight, *biases]
    adamw = torch.optim.AdamW([depthwise, {"params": others, "weight_decay": 0.0}], lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        kernel.grad = model["conv"].weight.grad.reshape(3, -1)
        muon.step()
        adamw.step()
    model["conv"].weight.data = kernel.detach().reshape(3, 2, 3, 3)
    for ours, theirs in zip(muon_steps(None), model.parameters(), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("units, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_orthogonalize_keeps_the_directions_and_evens_out_the_sizes(
    units: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_bf16_units", lambda: units)
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 6, 20), (3, 20, 6)):
        x = torch.randn(shape, generator=generator)
        orthogonal = muon.orthogonalize(x)
        assert orthogonal.dtype == dtype
        orthogonal = orthogonal.float()
        u, sizes, vt = torch.linalg.svd(x, full_matrices=False)
        now = u.mT @ orthogonal @ vt.mT  # diagonal, when the directions are the same
        off = now - torch.diag_embed(now.diagonal(dim1=1, dim2=2))
        assert sizes.max() / sizes.min() > 2 and off.abs().max() < 0.05
        assert now.diagonal(dim1=1, dim2=2).min() > 0.6 and now.diagonal(dim1=1, dim2=2).max() < 1.3


def test_muon_resumes_bit_for_bit() -> None:
    for ours, theirs in zip(muon_steps(1), muon_steps(None), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_refuses_zero() -> None:
    train = TrainConfig(steps=1, batch_size=1, muon=MuonConfig(), zero_stage=2)
    with pytest.raises(ConfigError, match="train.muon needs whole matrices: set train.zero_stage=0"):
        build_optimizer(parameter_groups(TinyModel(), train), train)
