"""Visual twins, as in EVEv2 (arXiv 2502.06788): each linear and norm of a decoder layer exists for text and for images.

Queries, keys and values of both kinds meet in the same attention. Tokens from `<vision>` to `</vision>` are visual. The
text twins keep the base's weights, so that text without an image gives exactly the base model's output.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM

from pixel_sail.errors import UserError
from pixel_sail.layout import Span, blocks_of


@dataclass(frozen=True)
class Modality:
    """Indices of the text tokens and of the visual tokens of a packed batch."""

    text: Tensor  # (T,) int64, positions of the text tokens
    visual: Tensor  # (L - T,) int64
    order: Tensor  # (L,) int64, the index of each token when all text comes first, then all images

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Modality:
        """From the spans of a batch, whose blocks are all tokens of its images."""
        text, visual = [], []
        for span in spans:
            images = blocks_of(span)
            edges = [span[0], *(edge for image in images for edge in image), span[-1]]
            text += zip(edges[::2], edges[1::2], strict=True)
            visual += images

        def index(runs: list[tuple[int, int]]) -> Tensor:  # made on the device, which nobody waits for
            return torch.cat([torch.arange(*run, device=device) for run in runs])

        of_text, of_images = index(text), index(visual)
        order = torch.empty(spans[-1][-1], dtype=torch.int64, device=device)
        order[torch.cat([of_text, of_images])] = torch.arange(len(order), device=device)
        return cls(of_text, of_images, order)


class Route:
    """Tells the pairs of a layer which tokens are visual while that layer runs. None: all are text."""

    modality: Modality | None = None


class Pair(nn.Module):
    """Two modules, `text` and `vision`, each for its own tokens; `vision` starts as a copy of `text`."""

    def __init__(self, stock: nn.Module, route: Route):
        super().__init__()
        self.text, self.vision = stock, copy.deepcopy(stock)
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """(1, L, width) -> (1, L, width'); any (B, T, width) if all tokens are text."""
        modality = self.route.modality
        if modality is None:
            return self.text(x)
        # Both run always, even on no tokens: every rank must use every weight.
        parts = [self.text(x.index_select(1, modality.text)), self.vision(x.index_select(1, modality.visual))]
        return torch.cat(parts, dim=1).index_select(1, modality.order)


class RoutedLayer(Qwen2DecoderLayer):
    """A Qwen2 layer whose linears and norms are pairs."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.route = Route()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.self_attn, name, Pair(getattr(self.self_attn, name), self.route))
        for name in ("mlp", "input_layernorm", "post_attention_layernorm"):
            setattr(self, name, Pair(getattr(self, name), self.route))

    def forward(self, hidden_states: Tensor, *args: Any, modality: Modality | None = None, **kwargs: Any) -> Tensor:
        """`modality` comes from PixelSail.decode through the decoder. Cached decoding, which is text, passes none."""
        # Set here, so that a layer that activation checkpointing runs again has the modality of its own batch.
        self.route.modality = modality
        return super().forward(hidden_states, *args, **kwargs)


def add_vision_experts(language_model: PreTrainedModel) -> None:
    """Replace every layer of a Qwen2 decoder by a routed one, with new weights. UserError for other decoders."""
    if not isinstance(language_model, Qwen2ForCausalLM):
        raise UserError(f"vision experts are EVEv2's, in Qwen2 decoders; this is a {type(language_model).__name__}")
    decoder = language_model.get_decoder()
    decoder.layers = nn.ModuleList(RoutedLayer(decoder.config, i) for i in range(len(decoder.layers)))
