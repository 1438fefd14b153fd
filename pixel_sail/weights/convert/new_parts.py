"""What a base does not have: rows for new tokens, the prompt fusion, the mask head, and the sizes that they need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.templates import QUESTIONS
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens
from pixel_sail.weights.convert.streaming import Made

PATCH_LINEAR = "fusion.patch_linear.weight"
PROMPT_LINEAR = "fusion.prompt_linear.weight"
SMALLEST_STRIDE = 4  # pixels of the image per mask logit, as in the paper


@dataclass(frozen=True)
class NewParts:
    """What a user may choose of a model that is made from a released base with a patch embedding of its own."""

    max_side_px: int | None = None  # None: the largest multiple of the patch side up to 1024
    mask_stride: int | None = None  # None: the patch side halved as often as it stays whole and at least 4
    mask_dim: int = 256
    question: str = QUESTIONS[0]

    def side_for(self, patch_size: int) -> int:
        """Pixels of the longer side; ValueError where it is not a multiple of the patch side."""
        side = 1024 // patch_size * patch_size if self.max_side_px is None else self.max_side_px
        if side % patch_size:
            raise ValueError(f"--max-side-px {side} must be a multiple of the base's patch side {patch_size}")
        return side

    def architecture(self, patch_size: int, **base: Any) -> Architecture:
        """The choices and what the base says, as fields of Architecture. ValueError for a bad choice."""
        choices = {"max_side_px": self.side_for(patch_size), "mask_stride": self.stride_for(patch_size)}
        try:
            return Architecture(patch_size=patch_size, mask_dim=self.mask_dim, **choices, **base)
        except ValidationError as error:
            raise ValueError("; ".join(item["msg"] for item in error.errors())) from None

    def stride_for(self, patch_size: int) -> int:
        """16 and 32 pixels: 4. 14 pixels: 7, because 3.5 is none."""
        stride = patch_size if self.mask_stride is None else self.mask_stride
        while self.mask_stride is None and stride % 2 == 0 and stride // 2 >= SMALLEST_STRIDE:
            stride //= 2
        return stride


def bare_config(text_config: PretrainedConfig, architecture: Architecture) -> PixelSailConfig:
    """What decides which weights a model has, and their shapes; `text_config` has the rows of all tokens already."""
    return PixelSailConfig(
        text_config=copy.deepcopy(text_config),  # else the base would lose its own attention
        architecture=architecture,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def released_config(
    architecture: Architecture,
    question: str,
    text_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: str,
    converted_from: str,
    differences: list[str],
) -> PixelSailConfig:
    """The config of a converted model; its `tokenizer` has all special tokens already."""
    config = bare_config(text_config, architecture)
    config.chat_format = ChatFormat.of(chat_format, tokenizer).name
    config.question = question
    config.prompt_token_ids = list(SpecialTokens.of(tokenizer).prompts)
    config.converted_from, config.differences = converted_from, differences
    return config


def new_parts(config: PixelSailConfig) -> dict[str, Made]:
    """Patch embedding, prompt fusion and mask head as they start where a base has none. Seed torch before the call.

    A prompt starts as its name, as loud as that is: patches of a trained base are about as loud as words.
    """
    with torch.device("meta"):
        model = PixelSail(config)
    made = {}
    for part in ("fusion", "mask_head"):
        module = getattr(model, part).to_empty(device="cpu")
        for layer in module.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        for name, tensor in module.state_dict().items():
            made[f"{part}.{name}"] = Made((), lambda tensor=tensor: tensor)
    if PROMPT_LINEAR in made:
        made[PROMPT_LINEAR] = Made((), lambda: torch.eye(config.text_config.hidden_size))
    return made


def grown(old: Tensor, rows: int, new_ids: Sequence[int]) -> Tensor:
    """Embeddings (V, D) as (max(V, rows), D) float32 with rows for `new_ids`, or `old` itself if none is needed.

    New rows have the mean and the spread of the words before them: plausible, and as distinct from each other as words.
    That is also so for new tokens that fall into rows which a base keeps empty.
    """
    fresh = sorted({*new_ids, *range(len(old), rows)})
    if not fresh:
        return old
    table = torch.empty(max(rows, len(old)), old.shape[1], device=old.device)
    table[: len(old)] = old
    words = table[: fresh[0]]
    table[fresh] = words.mean(0) + torch.randn(len(fresh), old.shape[1], device=old.device) * words.std()
    return table
