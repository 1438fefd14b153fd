"""From the weights of a run to those of an export: LoRA adapters, rows trained alone and 4-bit weights become plain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixel_sail.config import LoraConfig
from pixel_sail.errors import WeightsError

QUANT_STATE = ".quant_state.bitsandbytes__nf4"  # bitsandbytes' suffix to the name of a weight in a state dict


def merged(state: dict[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """Plain weights of an export from `state`, float32 weights under the names of training.

    A linear with an adapter becomes W + alpha / rank * B @ A (LoRA, arXiv 2106.09685); the trained rows of an embedding
    (train/finetune.py, NewRows) go back into its table.
    """
    if lora is None:
        return state
    state, plain = dict(state), {}
    for stem in _stems(state, ".lora_A.default.weight"):
        a, b = (state.pop(f"{stem}.lora_{part}.default.weight") for part in "AB")
        plain[f"{stem}.weight"] = state.pop(f"{stem}.base_layer.weight") + (lora.alpha / lora.rank) * (b @ a)
    for stem in _stems(state, ".table.weight"):
        table, rows, ids = state.pop(f"{stem}.table.weight"), state.pop(f"{stem}.rows"), state.pop(f"{stem}.ids")
        plain[f"{stem}.weight"] = table.index_copy(0, ids.long(), rows)
    for stem in _stems(state, ".ids"):  # of a head that is tied to the embeddings: its table was there already
        del state[f"{stem}.ids"]
    return plain | {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}


def dequantized(weight: nn.Parameter) -> Tensor:
    """The values (out, in), float32, of a 4-bit weight."""
    import bitsandbytes as bnb

    return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()


def dequantize_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint; those in 4 bits become their values (out, in), float32."""
    packed = [name.removesuffix(QUANT_STATE) for name in state if name.endswith(QUANT_STATE)]
    if not packed:
        return state
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise WeightsError("these weights are in 4 bits and need bitsandbytes: pip install bitsandbytes") from None

    state, device = dict(state), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in packed:
        parts = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
        quant_state = bnb.functional.QuantState.from_dict(
            {key.removeprefix(f"{name}."): part for key, part in parts.items()}, device=device
        )
        state[name] = bnb.functional.dequantize_4bit(state[name].to(device), quant_state).float().cpu()
    return state


def _stems(state: dict[str, Tensor], ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in state if name.endswith(ending)]
