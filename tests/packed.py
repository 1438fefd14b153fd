"""A small model of random weights, and sequences of a random vocabulary to pack for it, without a tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.data import pack as packing
from pixel_sail.data.encode import image_positions
from pixel_sail.data.runs import join_masks
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Batch, Encoded, ImageBlock

PATCH_PX = 16
SEG_ID, PATCH_ID, WORD_ID, PROMPT_IDS = 1, 2, 30, list(range(3, 18))


def small_model(architecture: dict[str, Any] | None = None, hidden_size: int = 32, vocab_size: int = 100) -> PixelSail:
    """Two Qwen2 layers, tied embeddings, float32, on the CPU."""
    text = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    parts = Architecture(patch_size=PATCH_PX, mask_dim=64, **(architecture or {}))
    torch.manual_seed(0)
    return PixelSail(PixelSailConfig(text, parts, prompt_token_ids=PROMPT_IDS, tie_word_embeddings=True))


def with_image(number: int, h: int, w: int, words: int = 60, masks: int = 3) -> Encoded:
    """An image with a prompt, then text that names it and has some [SEG]s."""
    image_tokens = h * w + 2
    ids = torch.full((image_tokens + words,), WORD_ID)
    ids[1 : image_tokens - 1] = PATCH_ID
    ids[image_tokens + 1 : image_tokens + 2] = PROMPT_IDS[0]
    ids[len(ids) - masks :] = SEG_ID
    labels = torch.full_like(ids, IGNORE_LABEL)
    answer = len(ids) - (words + 1) // 2  # the first token of it
    labels[answer:] = ids[answer:]
    prompt_ids = torch.full((h * w,), UNPROMPTED)
    prompt_ids[: h * w // 4] = 0
    positions = image_positions(1, h, w, 1 + words)
    pixels = torch.zeros(h * w, 3 * PATCH_PX**2, dtype=torch.uint8)
    size_hw = (h * PATCH_PX, w * PATCH_PX)
    targets = join_masks([np.array([size_hw[0] * size_hw[1]])] * masks, size_hw)
    images = (ImageBlock((0, image_tokens), (h, w), targets, tuple(range(masks))),)
    return Encoded(f"image{number}", number, ids, labels, positions, pixels, prompt_ids, images)


def with_images(number: int, grids_hw: tuple[tuple[int, int], ...], words: int = 60, masks: int = 3) -> Encoded:
    """As `with_image`, with several images. The masks are on them in turn."""
    alone = [with_image(number, h, w, words, masks) for h, w in grids_hw]
    stops = [one.images[0].span[1] for one in alone]
    images, positions, tokens = [], [], 0
    for i, (one, stop) in enumerate(zip(alone, stops, strict=True)):
        own = tuple(range(i, masks, len(alone)))
        height, width = one.images[0].masks.size_hw
        targets = join_masks([np.array([height * width])] * len(own), (height, width))
        images.append(ImageBlock((tokens, tokens + stop), one.images[0].grid_hw, targets, own))
        before = int(positions[-1][0, -1]) + 1 if positions else 0
        positions.append(one.position_ids[:, : stop if one is not alone[-1] else None] + before)
        tokens += stop
    parts = [one.input_ids[:stop] for one, stop in zip(alone[:-1], stops, strict=False)]
    return Encoded(
        f"images{number}",
        number,
        torch.cat([*parts, alone[-1].input_ids]),
        torch.cat([*(torch.full_like(part, IGNORE_LABEL) for part in parts), alone[-1].labels]),
        torch.cat(positions, dim=1),
        torch.cat([one.patches for one in alone]),
        torch.cat([one.prompt_ids for one in alone]),
        tuple(images),
    )


def only_text(number: int, words: int) -> Encoded:
    """A sequence without an image."""
    ids = torch.full((words,), WORD_ID)
    labels = torch.cat([torch.full((words // 2,), IGNORE_LABEL), ids[words // 2 :]])
    no_patch = torch.empty(0, dtype=torch.int64)
    positions, pixels = torch.arange(words).expand(3, -1), torch.empty(0, 3 * PATCH_PX**2, dtype=torch.uint8)
    return Encoded(f"text{number}", number, ids, labels, positions, pixels, no_patch)


def pack(sequences: list[Encoded]) -> Batch:
    """As a worker of the loader packs them."""
    return packing.pack(sequences, SEG_ID, PATCH_ID)
