"""EVEv2 (arXiv 2502.06788): a Qwen2 decoder with twins for visual tokens; two convolutions embed the patches.

Its ways with images are options of the architecture (WAYS): Pixel-SAIL's 7B keeps them. Its vision tower has three
parts that become embeddings of ours, bit for bit: the class token that of <vision>, which opens an image; the split
token that of </vision>, which ends each row; the bias of the second convolution that of <vpatch>, which is added to
every patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.tokens import SpecialTokens
from pixel_sail.weights.convert.new_parts import NewParts, grown, model_config, new_parts
from pixel_sail.weights.convert.released import (
    EMBED,
    HEAD,
    decoder_config,
    read_settings,
    read_tokenizer,
    renamed,
    shape,
)
from pixel_sail.weights.convert.streaming import Conversion, DerivedWeight, copied

WAYS = {
    "vision_experts": True,
    "image_attention": "causal",
    "image_positions": "sequence",
    "row_ends": True,
    "pixel_statistics": "clip",
    "resize_by": "area",
    "resize_filter": "bicubic",
    "prompt_linear": False,  # as in Pixel-SAIL's 7B
}
SIDE_PX = 800  # root of the area of an image in EVEv2's first stages and in Pixel-SAIL's 7B

VISION = "model.vision_tower."
CONV1, BIAS1 = f"{VISION}patch_embedding.0.weight", f"{VISION}patch_embedding.0.bias"
CONV2, BIAS2 = f"{VISION}patch_embedding.2.weight", f"{VISION}patch_embedding.2.bias"
CLASS, SPLIT = f"{VISION}class_embedding", f"{VISION}split_embedding"
START = f"{VISION}start_embedding"  # the class token's name in later versions of EVEv2's code

_LAYER = r"(model\.layers\.\d+\.)"
# Names in the files -> ours. Every linear and norm of a layer is a pair (model/modality_experts.py).
PATTERNS = [
    (_LAYER + r"self_attn\.moe_([qkvo]_proj)\.(.*)", r"language_model.\1self_attn.\2.vision.\3"),
    (_LAYER + r"self_attn\.([qkvo]_proj)\.(.*)", r"language_model.\1self_attn.\2.text.\3"),
    (_LAYER + r"moe_mlp\.(.*)", r"language_model.\1mlp.vision.\2"),
    (_LAYER + r"mlp\.(.*)", r"language_model.\1mlp.text.\2"),
    (_LAYER + r"moe_(input_layernorm|post_attention_layernorm)\.(.*)", r"language_model.\1\2.vision.\3"),
    (_LAYER + r"(input_layernorm|post_attention_layernorm)\.(.*)", r"language_model.\1\2.text.\3"),
    (r"(model\.norm\.weight|model\.embed_tokens\.weight|lm_head\.weight)", r"language_model.\1"),
]

DIFFERENCES = (
    "EVE-7B-HD-v2.0 was last trained on images of about 1600 x 1600 pixels; now they have about `max_side_px` squared",
    "an image stood in the first question, after a system message; now it comes first, and questions are written in "
    "`chat_format`",
)


def plan_evev2(folder: Path, parts: NewParts) -> Conversion:
    """Raises WeightsError for missing files, and for weights that are not EVEv2's."""
    settings, files = read_settings(folder), WeightFiles(folder, pickled=True)
    tokenizer, new_ids = read_tokenizer(folder)
    parts = replace(parts, max_side_px=SIDE_PX) if parts.max_side_px is None else parts
    architecture = partial(parts.architecture, **WAYS)
    names = {"chat_format": "auto", "question": parts.question}
    names |= {"converted_from": "evev2", "differences": list(DIFFERENCES)}
    return evev2_conversion(files, settings, (tokenizer, new_ids), architecture, {}, names)


def evev2_conversion(
    files: WeightFiles,
    settings: dict[str, Any],
    words: tuple[PreTrainedTokenizerBase, list[int]],
    architecture: Callable[..., Architecture],
    trained: dict[str, DerivedWeight],
    names: dict[str, Any],
) -> Conversion:
    """The conversion of weights with the names of EVEv2, and of others beside them.

    `words`: the tokenizer with our special tokens, and the ids of those that are new; `architecture(patch_size, ...)`
    makes it; `trained`: what the files have of the parts that EVEv2 lacks; `names`: of the config (`model_config`).
    Raises WeightsError as `plan_evev2`.
    """
    tokenizer, new_ids = words
    text_config = decoder_config(Qwen2Config, files, settings, tokenizer)
    width, _, sub_patch_size, _ = shape(files, CONV1)
    patch_size = sub_patch_size * shape(files, CONV2)[-1]
    config = model_config(
        text_config,
        architecture(patch_size, sub_patch_size=sub_patch_size, sub_patch_width=width),
        tokenizer,
        **names,
    )
    beside = {source for weight in trained.values() for source in weight.sources}
    opening_key = START if START in files.shapes else CLASS
    beside |= {CONV1, BIAS1, CONV2, BIAS2, opening_key, SPLIT}
    decoder = [key for key in files.shapes if key not in beside]
    derived = copied(renamed(decoder, PATTERNS, "EVEv2")) | _fusion()
    tokens, rows = SpecialTokens.of(tokenizer), text_config.vocab_size

    def table(old: Tensor, opening: Tensor, patch: Tensor, closing: Tensor) -> Tensor:
        grown_rows = grown(old, rows, new_ids)
        grown_rows[[tokens.vision_start, tokens.vision_patch, tokens.vision_end]] = torch.stack(
            [opening, patch, closing]
        ).to(grown_rows.dtype)
        return grown_rows

    derived[f"language_model.{EMBED}"] = DerivedWeight((EMBED, opening_key, BIAS2, SPLIT), table)
    if HEAD in files.shapes:
        derived[f"language_model.{HEAD}"] = DerivedWeight((HEAD,), lambda old: grown(old, rows, new_ids))
    return Conversion(files, config, tokenizer, new_parts(config) | trained | derived)


def _fusion() -> dict[str, DerivedWeight]:
    return {
        "fusion.sub_patch_linear.weight": DerivedWeight((CONV1,), lambda kernel: kernel.flatten(1)),
        "fusion.sub_patch_linear.bias": DerivedWeight((BIAS1,), lambda bias: bias),
        # (D, m, row, column) -> (D, row column m): our sub-patches follow one another
        "fusion.patch_linear.weight": DerivedWeight((CONV2,), lambda kernel: kernel.permute(0, 2, 3, 1).flatten(1)),
    }
