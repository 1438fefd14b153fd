"""What a base does not have: rows for new tokens, the prompt fusion, the mask head, and the sizes that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.convert.streaming import Made
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.templates import QUESTIONS
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.mask_head import default_channels
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens

PATCH_LINEAR = "fusion.patch_linear.weight"
PROMPT_LINEAR = "fusion.prompt_linear.weight"
SMALLEST_STRIDE = 4  # pixels of the picture per mask logit, as in the paper


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

    def stride_for(self, patch_size: int) -> int:
        """16 and 32 pixels: 4. 14 pixels: 7, because 3.5 is none."""
        stride = patch_size if self.mask_stride is None else self.mask_stride
        while self.mask_stride is None and stride % 2 == 0 and stride // 2 >= SMALLEST_STRIDE:
            stride //= 2
        return stride


def released_config(
    parts: NewParts,
    text_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    patch_size: int,
    chat_format: str,
    converted_from: str,
    differences: list[str],
) -> PixelSailConfig:
    """The config of a converted model; its `tokenizer` has all special tokens already. ValueError for a bad choice."""
    blocks = stride_blocks(patch_size, parts.stride_for(patch_size))
    return PixelSailConfig(
        text_config=text_config,
        patch_size=patch_size,
        max_side_px=parts.side_for(patch_size),
        mask_dim=parts.mask_dim,
        mask_channels=default_channels(text_config.hidden_size, blocks),
        chat_format=ChatFormat.of(chat_format, tokenizer).name,
        question=parts.question,
        prompt_token_ids=list(SpecialTokens.of(tokenizer).prompts),
        tie_word_embeddings=text_config.tie_word_embeddings,
        converted_from=converted_from,
        differences=differences,
    )


def stride_blocks(patch_size: int, mask_stride: int) -> int:
    """U: how often the patch grid is doubled to reach `mask_stride`."""
    blocks = math.log2(patch_size / mask_stride)
    if blocks < 0 or blocks != int(blocks):
        raise ValueError(f"model.mask_stride {mask_stride} must be model.patch_size {patch_size} over a power of two")
    return int(blocks)


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
