"""Any Hugging Face decoder as the single transformer: its own layers, with our positions and our attention."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pixel_sail.architecture import Architecture
from pixel_sail.errors import UserError
from pixel_sail.model.attention import NAME
from pixel_sail.model.axis_attention import AxisRope, add_axis_attention
from pixel_sail.model.modality_experts import add_vision_experts

# These change their frequencies with the length of the input, which has no meaning for 2-D image positions.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class MultimodalRope(nn.Module):
    """Rotary cos and sin from (t, h, w) positions; replaces a decoder's own `rotary_emb`. See docs/model.md.

    Layout "halves", as in Pixel-SAIL (arXiv 2504.10465): of the d/2 frequencies the faster half reads h and the slower
    half w (sections [0, d/4, d/4]). Layout "interleaved": h and w take every other frequency, so that both are read
    equally sharply. Where the three axes are equal, both layouts are the decoder's own 1-D RoPE.
    """

    def __init__(self, rotary: nn.Module, layout: str):
        super().__init__()
        if getattr(rotary, "rope_type", "default") in _LENGTH_DEPENDENT_ROPE or not hasattr(rotary, "inv_freq"):
            raise UserError(
                f"decoders with rope type {getattr(rotary, 'rope_type', type(rotary).__name__)!r} are not supported: "
                "their rotary frequencies depend on the input length"
            )
        if rotary.inv_freq.numel() % 2:
            raise UserError(f"multimodal RoPE needs a head dim divisible by 4, got {2 * rotary.inv_freq.numel()}")
        self.interleaved = layout == "interleaved"
        self.rotary = rotary  # kept as a module: transformers initializes and moves its buffers

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin (B, L, d) in the dtype of `hidden`, from `position_ids` (3, B, L) int64; computed in float32."""
        inv_freq = self.rotary.inv_freq.float()
        number = torch.arange(inv_freq.numel(), device=inv_freq.device)
        reads_rows = number % 2 == 0 if self.interleaved else number < inv_freq.numel() // 2
        _, rows, columns = position_ids.float().unbind(0)  # (B, L)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            angles = torch.where(reads_rows, rows[..., None], columns[..., None]) * inv_freq
            angles = torch.cat([angles, angles], dim=-1)
            scaling = self.rotary.attention_scaling
            return (angles.cos() * scaling).to(hidden.dtype), (angles.sin() * scaling).to(hidden.dtype)


def build_decoder(text_config: PretrainedConfig, architecture: Architecture) -> PreTrainedModel:
    """An adapted causal language model of `text_config`, with the weights that transformers initializes."""
    config = copy.deepcopy(text_config)  # the attention is written into it, and others may share it
    language_model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    if architecture.vision_experts:
        add_vision_experts(language_model)
    if architecture.axis_theta is not None:
        add_axis_attention(language_model)
    return adapt_decoder(language_model, architecture)


def adapt_decoder(language_model: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """Gives a causal language model mixed attention and 2-D positions, in place. Raises UserError without RoPE."""
    decoder = language_model.get_decoder()
    if not hasattr(decoder, "rotary_emb"):
        raise UserError(f"{type(decoder).__name__} has no rotary_emb: pixel_sail needs a decoder with rotary positions")
    language_model.set_attn_implementation(NAME)
    if architecture.axis_theta is None:
        decoder.rotary_emb = MultimodalRope(decoder.rotary_emb, architecture.small.rope_layout)
    else:
        decoder.rotary_emb = AxisRope(decoder.rotary_emb, architecture.axis_theta)
    return language_model


def cache_argument(decoder: PreTrainedModel) -> str:
    """The name that this version of transformers gives to the argument with the keys and values of earlier tokens."""
    parameters = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
