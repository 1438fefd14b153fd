"""Attention with queries and keys of their own for rows and columns, as in NEO (arXiv 2510.14979).

A head has queries and keys of width d for time, as in text, and of d/2 each for rows and for columns, with a projection
and norms of their own; all turn with their own position. A score is the sum of the three products. Values are not
divided. In text, rows and columns do not turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3ForCausalLM,
    Qwen3RMSNorm,
    rotate_half,
)

from pixel_sail.architecture import Architecture
from pixel_sail.errors import UserError


def head_widths(text: PretrainedConfig, architecture: Architecture) -> tuple[int, int]:
    """The width of a head's queries and keys, and that of its values. `text`: the config of the decoder."""
    values = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return values if architecture.axis_theta is None else 2 * values, values


class AxisRope(nn.Module):
    """Rotary cos and sin of time, rows and columns, one after the other; replaces a decoder's own `rotary_emb`."""

    def __init__(self, rotary: nn.Module, theta: float):
        """`theta`: base of the frequencies of rows and columns. UserError for a head dim that 4 does not divide."""
        super().__init__()
        if rotary.inv_freq.numel() % 2:
            raise UserError(f"rows and columns need a head dim divisible by 4, got {2 * rotary.inv_freq.numel()}")
        self.rotary, self.theta = rotary, theta

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin (B, L, 2 d) in the dtype of `hidden`, from `position_ids` (3, B, L) int64; computed in float32.

        Rows and columns are counted from the position in time: (t, t + row, t + column).
        """
        frequencies = self.rotary.inv_freq.float()  # (d/2,)
        half = frequencies.numel()
        of_axes = self.theta ** (-torch.arange(0, half, 2, device=frequencies.device) / half)  # (d/4,)
        time, rows, columns = position_ids[..., None].float().unbind(0)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            angles = (time * frequencies, (rows - time) * of_axes, (columns - time) * of_axes)
            twice = torch.cat([angle for axis in angles for angle in (axis, axis)], dim=-1)
            return twice.cos().to(hidden.dtype), twice.sin().to(hidden.dtype)


class AxisAttention(Qwen3Attention):
    """Qwen3's attention with the weights of NEO, under their published names."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            linear = nn.Linear(config.hidden_size, heads * self.head_dim, bias=config.attention_bias)
            setattr(self, f"{name}_proj_hw", linear)
            for axis in "hw":
                norm = Qwen3RMSNorm(self.head_dim // 2, eps=config.rms_norm_eps)
                setattr(self, f"{name}_norm_{axis}", norm)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Any = None,
        past_key_values: Any = None,  # the name of `cache` in older versions of transformers
        **kwargs: Any,  # what the attention function reads
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> (B, L, D). `position_embeddings`: those of AxisRope."""
        shape, x = (*hidden_states.shape[:-1], -1, self.head_dim), hidden_states
        query = self._three(self.q_proj(x).view(shape), self.q_proj_hw(x).view(shape), "q", position_embeddings)
        key = self._three(self.k_proj(x).view(shape), self.k_proj_hw(x).view(shape), "k", position_embeddings)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.o_proj(out.reshape(*shape[:-2], -1)), weights

    def _three(self, time: Tensor, axes: Tensor, name: str, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        """(B, heads, L, 2 d), normed and turned, from (B, L, heads, d) of time and of rows and columns together."""
        rows, columns = axes.chunk(2, dim=-1)
        norms = (getattr(self, f"{name}_norm{axis}") for axis in ("", "_h", "_w"))
        parts = [norm(part).transpose(1, 2) for norm, part in zip(norms, (time, rows, columns), strict=True)]
        cos, sin = (x.unsqueeze(1) for x in cos_sin)
        return torch.cat(parts, dim=-1) * cos + torch.cat([rotate_half(part) for part in parts], dim=-1) * sin


def add_axis_attention(language_model: PreTrainedModel) -> None:
    """Replace the attention of every layer of a Qwen3 decoder, with new weights. UserError for other decoders."""
    if not isinstance(language_model, Qwen3ForCausalLM):
        raise UserError(f"axis_theta is NEO's, in Qwen3 decoders; this is a {type(language_model).__name__}")
    decoder = language_model.get_decoder()
    for index, layer in enumerate(decoder.layers):
        layer.self_attn = AxisAttention(decoder.config, index)
