"""Frozen linears in 4 bits (bitsandbytes' nf4) under trained adapters, after QLoRA (arXiv 2305.14314).

An export merges the adapters into the 4-bit weights that they were trained on (weights/merge.py), so that it is the
model that was trained.
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
    """Replace the named linears, one at a time, by 4-bit ones of float32 values on the device of this process.

    Raises ConfigError without bitsandbytes, without a GPU, or with ZeRO, which cannot shard 4-bit weights.
    """
    _check(train)
    import bitsandbytes as bnb

    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = decoder.get_submodule(name)
        compute = torch.float32 if train.precision == "fp32" else torch.bfloat16
        quantized = _frozen_linear(bnb)(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=compute, quant_type="nf4"
        )
        quantized.weight = bnb.nn.Params4bit(
            linear.weight.detach().float(), requires_grad=False, quant_type="nf4", module=quantized
        )
        if linear.bias is not None:
            quantized.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        setattr(decoder.get_submodule(parent), leaf, quantized.to(distributed.device()))
    decoder.is_loaded_in_4bit = True  # PEFT reads it


def _check(train: TrainConfig) -> None:
    if train.zero_stage > 0:
        raise ConfigError("train.lora.quantize=nf4 needs train.zero_stage=0: ZeRO cannot shard 4-bit weights")
    if distributed.device().type != "cuda":
        raise ConfigError("train.lora.quantize=nf4 needs a GPU, and there is none: set train.lora.quantize=none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("train.lora.quantize=nf4 needs bitsandbytes: pip install 'pixel_sail[qlora]'")


def _frozen_linear(bnb: Any) -> type[nn.Module]:
    class FrozenLinear(bnb.nn.Linear4bit):
        """A 4-bit linear that never loads weights: they are quantized at the start and must equal the checkpoint's."""

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
            quantized_state = self.state_dict(prefix=prefix)
            if any(
                key not in state_dict or not torch.equal(quantized_state[key].cpu(), state_dict[key].cpu())
                for key in quantized_state
            ):
                error_msgs.append(f"{prefix}weight is another than the run began with: its start has changed")

    return FrozenLinear
