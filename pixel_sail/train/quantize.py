"""Frozen linears in 4 bits (bitsandbytes' nf4) under trained adapters, after QLoRA (arXiv 2305.14314).

Trained adapters are merged into the 4-bit weights that they were trained on: an export is what was trained.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixel_sail.config import ConfigError, TrainConfig
from pixel_sail.train import distributed


def quantize_linears(decoder: nn.Module, names: Sequence[str], train: TrainConfig) -> None:
    """Replaces the named linears, one at a time, by 4-bit ones on this process's device.

    Raises ConfigError without bitsandbytes, without a GPU, or with ZeRO, which cuts weights that 4 bits do not allow.
    """
    _check(train)
    import bitsandbytes as bnb

    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = decoder.get_submodule(name)
        compute = torch.float32 if train.precision == "fp32" else torch.bfloat16
        small = _frozen_linear(bnb)(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=compute, quant_type="nf4"
        )
        small.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4", module=small)
        if linear.bias is not None:
            small.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        setattr(decoder.get_submodule(parent), leaf, small.to(distributed.device()))
    decoder.is_loaded_in_4bit = True  # PEFT looks at it


def _check(train: TrainConfig) -> None:
    if train.zero_stage > 0:
        raise ConfigError("train.lora.quantize=nf4 needs train.zero_stage=0: ZeRO cannot cut 4-bit weights")
    if distributed.device().type != "cuda":
        raise ConfigError("train.lora.quantize=nf4 needs a GPU, and there is none: set train.lora.quantize=none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("train.lora.quantize=nf4 needs bitsandbytes: pip install 'pixel_sail[qlora]'")


def _frozen_linear(bnb: Any) -> type[nn.Module]:
    class FrozenLinear(bnb.nn.Linear4bit):
        """Its weights never come from a checkpoint: they are made from the start of the run, and must be the same."""

        def _load_from_state_dict(
            self,
            state_dict: dict[str, Tensor],
            prefix: str,
            local_metadata: dict[str, Any],
            strict: bool,
            missing_keys: list[str],
            unexpected_keys: list[str],
            error_msgs: list[str],
        ) -> None:
            own = self.state_dict(prefix=prefix)
            if any(key not in state_dict or not torch.equal(own[key].cpu(), state_dict[key].cpu()) for key in own):
                error_msgs.append(f"{prefix}weight is another than the run began with: its start has changed")

    return FrozenLinear
