"""EVEv2 (arXiv 2502.06788): a Qwen2 decoder with twins for visual tokens; two convolutions embed the patches.

Three parts of EVEv2 that our model lacks are folded into weights that it has, without loss:
* CLIP's mean and standard deviation of pixels, into the first convolution, which then expects our normalization;
* the bias of the second convolution, into the embedding of <vpatch>, which is added to every patch;
* the class and split embeddings, into those of <vision> and </vision>: they open an image and close its last row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config

from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.model.pixels import MEAN, STD
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

OUR_MEAN, OUR_STD = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)  # of RGB in 0..1
CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)

VISION = "model.vision_tower."
CONV1, BIAS1 = f"{VISION}patch_embedding.0.weight", f"{VISION}patch_embedding.0.bias"
CONV2, BIAS2 = f"{VISION}patch_embedding.2.weight", f"{VISION}patch_embedding.2.bias"
CLASS, SPLIT = f"{VISION}class_embedding", f"{VISION}split_embedding"

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

# As with SOLO: the paper's 7B model starts from EVEv2 and is trained with its own positions and attention.
DIFFERENCES = (
    "every row of patches was closed by a split token; now only the last is, by `</vision>`, and the positions "
    "(row, column) say where a row ends",
    "positions were 1-D; now patches have (row, column)",
    "a patch saw those before it; now all tokens of an image see each other",
    "images were resized by EVEv2's own rule; now both sides are rounded up to whole patches, up to `max_side_px`",
)


def plan_evev2(folder: Path, parts: NewParts) -> Conversion:
    """Raises WeightsError for missing files, and for weights that are not EVEv2's."""
    settings, files = read_settings(folder), WeightFiles(folder, pickled=True)
    tokenizer, new_ids = read_tokenizer(folder)
    text_config = decoder_config(Qwen2Config, files, settings, tokenizer)
    width, _, sub_patch_size, _ = shape(files, CONV1)
    patch_size = sub_patch_size * shape(files, CONV2)[-1]
    architecture = parts.architecture(
        patch_size, sub_patch_size=sub_patch_size, sub_patch_width=width, vision_experts=True
    )
    config = model_config(
        text_config,
        architecture,
        tokenizer,
        "auto",
        parts.question,
        converted_from="evev2",
        differences=list(DIFFERENCES),
    )
    decoder = [key for key in files.shapes if key not in (CONV1, BIAS1, CONV2, BIAS2, CLASS, SPLIT)]
    derived = copied(renamed(decoder, PATTERNS, "EVEv2")) | _fusion()
    tokens, rows = SpecialTokens.of(tokenizer), text_config.vocab_size

    def table(old: Tensor, opening: Tensor, patch: Tensor, closing: Tensor) -> Tensor:
        grown_rows = grown(old, rows, new_ids)
        grown_rows[[tokens.vision_start, tokens.vision_patch, tokens.vision_end]] = torch.stack(
            [opening, patch, closing]
        ).to(grown_rows.dtype)
        return grown_rows

    derived[f"language_model.{EMBED}"] = DerivedWeight((EMBED, CLASS, BIAS2, SPLIT), table)
    if HEAD in files.shapes:
        derived[f"language_model.{HEAD}"] = DerivedWeight((HEAD,), lambda old: grown(old, rows, new_ids))
    return Conversion(files, config, tokenizer, new_parts(config) | derived)


def _fusion() -> dict[str, DerivedWeight]:
    return {
        "fusion.sub_patch_linear.weight": DerivedWeight(
            (CONV1,), lambda kernel: _times(kernel, OUR_STD / CLIP_STD).flatten(1)
        ),
        "fusion.sub_patch_linear.bias": DerivedWeight((CONV1, BIAS1), _first_bias),
        # (D, m, row, column) -> (D, row column m): our sub-patches follow one another
        "fusion.patch_linear.weight": DerivedWeight((CONV2,), lambda kernel: kernel.permute(0, 2, 3, 1).flatten(1)),
    }


def _first_bias(kernel: Tensor, bias: Tensor) -> Tensor:
    """(m,): a pixel x of ours is (STD x + MEAN - CLIP_MEAN) / CLIP_STD of CLIP's; this adds the constant part."""
    return bias.float() + _times(kernel, (OUR_MEAN - CLIP_MEAN) / CLIP_STD).sum((1, 2, 3))


def _times(kernel: Tensor, channels: np.ndarray) -> Tensor:
    """A kernel (m, 3, rows, columns), each input channel multiplied by its entry of `channels` (3,)."""
    return kernel.float() * torch.from_numpy(channels).to(kernel.device)[:, None, None]
