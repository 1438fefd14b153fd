"""What a base lacks: rows for new tokens, the prompt fusion, the mask head, and their sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.templates import QUESTIONS
from pixel_sail.errors import UserError
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.load import on_meta
from pixel_sail.model.configuration import PixelSailConfig, check_ids
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens
from pixel_sail.weights.convert.streaming import DerivedWeight

PATCH_LINEAR = "fusion.patch_linear.weight"
PROMPT_LINEAR = "fusion.prompt_linear.weight"
SMALLEST_STRIDE = 4  # pixels of the image per mask logit, as in the paper


@dataclass(frozen=True)
class NewParts:
    """A user's choices for a model that starts from a released base with a patch embedding of its own."""

    max_side_px: int | None = None  # None: the base's own, or the largest multiple of the patch side up to 1024
    mask_stride: int | None = None  # None: the patch side halved as often as it stays whole and at least 4
    mask_dim: int = 256
    question: str = QUESTIONS[0]

    def side_for(self, patch_size: int) -> int:
        """Pixels of the longer side. Raises UserError if it is not a multiple of the patch side."""
        side = 1024 // patch_size * patch_size if self.max_side_px is None else self.max_side_px
        if side % patch_size:
            raise UserError(f"--max-side-px {side} must be a multiple of the base's patch side {patch_size}")
        return side

    def architecture(self, patch_size: int, **base: Any) -> Architecture:
        """The Architecture of these choices and of what the base determines. Raises UserError if they clash."""
        choices = {"max_side_px": self.side_for(patch_size), "mask_stride": self.stride_for(patch_size)}
        try:
            return Architecture(patch_size=patch_size, mask_dim=self.mask_dim, **choices, **base)
        except ValidationError as error:
            raise UserError("; ".join(item["msg"] for item in error.errors())) from None

    def stride_for(self, patch_size: int) -> int:
        """The chosen stride, or the default: 4 for patches of 16 and 32 pixels, 7 for 14 (3.5 is no whole number)."""
        stride = patch_size if self.mask_stride is None else self.mask_stride
        while self.mask_stride is None and stride % 2 == 0 and stride // 2 >= SMALLEST_STRIDE:
            stride //= 2
        return stride


def bare_config(text_config: PretrainedConfig, architecture: Architecture) -> PixelSailConfig:
    """A config with just what determines the weights and their shapes; `text_config` counts our special tokens."""
    return PixelSailConfig(
        text_config=copy.deepcopy(text_config),  # PixelSail changes its attention: the base keeps its own
        architecture=architecture,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def model_config(
    text_config: PretrainedConfig,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: str,
    question: str,
    hide: str = "none",
    converted_from: str | None = None,
    differences: list[str] | None = None,
) -> PixelSailConfig:
    """The config of a whole model. `text_config` and `tokenizer` must have our special tokens already.

    Raises WeightsError if the tokenizer has ids without an embedding.
    """
    check_ids(tokenizer, text_config.vocab_size, "the base")
    config = bare_config(text_config, architecture)
    chat = ChatFormat.of(chat_format, tokenizer)
    config.chat_format, config.chat_pieces = chat.name, chat.pieces
    config.question, config.hide = question, hide
    config.prompt_token_ids = list(SpecialTokens.of(tokenizer).prompts)
    config.converted_from, config.differences = converted_from, differences
    return config


def new_parts(config: PixelSailConfig) -> dict[str, DerivedWeight]:
    """Initial weights of patch embedding, prompt fusion, mask head and score head. Seed torch before the call.

    A prompt starts as the embedding of its name, unscaled: the patches of a trained base have about the same norm as
    its token embeddings.
    """
    model = on_meta(lambda: PixelSail(config), Path(CONFIG))
    weights = {}
    for part in ("fusion", "mask_head", *(["score_head"] if config.architecture.mask_scores else [])):
        module = initialized(getattr(model, part))
        for name, tensor in module.state_dict().items():
            weights[f"{part}.{name}"] = DerivedWeight((), lambda tensor=tensor: tensor)
    if PROMPT_LINEAR in weights:
        weights[PROMPT_LINEAR] = DerivedWeight((), lambda: torch.eye(config.text_config.hidden_size))
    return weights


def initialized(module: nn.Module) -> nn.Module:
    """A module of the meta device with torch's initial values on the CPU, in place."""
    module.to_empty(device="cpu")
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return module


def grown(old: Tensor, rows: int, new_ids: Sequence[int]) -> Tensor:
    """Embeddings (V, D) with rows for `new_ids`: (max(V, rows), D) float32, or `old` itself if no row is new."""
    fresh, drawn = new_rows(old, rows, new_ids)
    if not fresh:
        return old
    table = torch.empty(max(rows, len(old)), old.shape[1], device=old.device)
    table[: len(old)] = old
    table[fresh] = drawn
    return table


def new_rows(old: Tensor, rows: int, new_ids: Sequence[int]) -> tuple[list[int], Tensor]:
    """Ids of the new rows of embeddings (V, D) that get `rows` rows, and these rows, (N, D) float32.

    They are drawn with the mean and the standard deviation of the rows before them, so that they are plausible and
    as distinct from each other as words. New tokens that fall into spare rows of the base are drawn as well.
    """
    fresh = sorted({*new_ids, *range(len(old), rows)})
    if not fresh:
        return fresh, torch.empty(0, old.shape[1], device=old.device)
    words = old[: fresh[0]].float()
    return fresh, words.mean(0) + torch.randn(len(fresh), old.shape[1], device=old.device) * words.std()
