"""The optimizer: which parameters decay, which learn faster, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from pixel_sail.config import ConfigError, TrainConfig
from pixel_sail.train.finetune import NewRows
from pixel_sail.train.muon import MuonAdamW, is_matrix

DECODER_PREFIX = "language_model."  # every other parameter of the model is a new part


def lr_at(step: int, steps: int, lr: float, warmup_fraction: float) -> float:
    """Learning rate of optimizer step `step` (0 <= step < steps): linear warm-up to `lr`, then cosine to 0.

    The first step of the warm-up already has a rate above 0. The cosine would reach 0 at step `steps`, after the last.
    """
    warmup_steps = int(warmup_fraction * steps)
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict]:
    """Optimizer groups by decoder or new part, decayed or not, and, with Muon, matrix (or kernel) or not.

    Matrices and convolution kernels decay; biases, norms and embeddings do not. `lr_scale` multiplies `lr_at`; `muon`
    says whether Muon updates the group.
    """
    rates, scoring = _embedding_rates(model, train), scoring_parameters(model)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and id(parameter) not in rates
        lr_scale = 1.0 if name.startswith(DECODER_PREFIX) else train.new_parts_lr_scale
        lr_scale = rates.get(id(parameter), lr_scale)
        # Muon would update a matrix of the score head together with those of its shape, whose last bits could change.
        muon = train.muon is not None and decays and is_matrix(parameter) and id(parameter) not in scoring
        groups.setdefault((train.weight_decay if decays else 0.0, lr_scale, muon), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_scale": lr_scale, "muon": muon, "lr": 0.0}
        for (weight_decay, lr_scale, muon), parameters in groups.items()
    ]


def scoring_parameters(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters of the score head by their id; empty without one. Nothing else depends on them."""
    head = getattr(model, "score_head", None)
    return {} if head is None else {id(parameter): parameter for parameter in head.parameters()}


def _embedding_rates(model: nn.Module, train: TrainConfig) -> dict[int, float]:
    """id of each embedding table, or of its trained rows (NewRows) -> its rate relative to train.lr."""
    table = 1.0 if train.muon is None else train.muon.embeddings_lr_scale
    rows = 1.0 if train.lora is None else train.lora.rows_lr_scale
    rates = {id(module.weight): table for module in model.modules() if isinstance(module, nn.Embedding)}
    return rates | {id(module.rows): rows for module in model.modules() if isinstance(module, NewRows)}


def build_optimizer(groups: list[dict], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Muon; DeepSpeed's CPU AdamW if its states are offloaded.

    The rate starts at 0 because `set_lr` sets it before every step. Raises ConfigError if DeepSpeed's kernel cannot be
    compiled, and for Muon with ZeRO, which shards matrices, while Muon needs whole ones.
    """
    if train.muon is not None:
        if train.zero_stage > 0:
            raise ConfigError("train.muon needs whole matrices: set train.zero_stage=0, or leave train.muon out")
        return MuonAdamW(groups, train.betas)
    if train.offload == "none":
        return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, fused=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        return DeepSpeedCPUAdam(groups, lr=0.0, betas=train.betas, adamw_mode=True)
    except (RuntimeError, ImportError, OSError) as error:
        raise ConfigError(
            f"train.offload={train.offload} needs DeepSpeed's CPU Adam, which it compiles at its first use: install a "
            "C++ compiler, ninja and the Python headers (python3-dev), or set train.offload=none. "
            f"The compiler said: {error}"
        ) from error


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
