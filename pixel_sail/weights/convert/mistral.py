"""What SOLO and SAIL share: MistralForCausalLM in its own names, and one linear over patches, added to <vpatch>."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import MistralConfig

from pixel_sail.tokens import SpecialTokens
from pixel_sail.weights.convert.new_parts import NewParts, grown, new_parts, released_config
from pixel_sail.weights.convert.released import (
    EMBED,
    HEAD,
    decoder_config,
    read_settings,
    read_tokenizer,
    renamed,
    require_tokens,
    shape,
)
from pixel_sail.weights.convert.streaming import Conversion, Made, WeightFiles, copied


def mistral_conversion(
    folder: Path,
    parts: NewParts,
    family: str,
    patch_embedding: str,
    known_tokens: Sequence[str],
    differences: Sequence[str],
) -> Conversion:
    """`patch_embedding`: the key of the (D, 3 P P) linear; `known_tokens`: ours that the base was trained with.

    Raises FileNotFoundError for missing files, ValueError for weights or a tokenizer that are not of the family.
    """
    settings, weights = read_settings(folder), WeightFiles(folder)
    tokenizer, new_ids = read_tokenizer(folder)
    require_tokens(tokenizer, new_ids, known_tokens, family)
    window = settings.get("sliding_window")
    text_config = decoder_config(
        MistralConfig, weights, settings, tokenizer, sliding_window=None, head_dim=settings.get("head_dim")
    )
    patch_size = round((shape(weights, patch_embedding)[1] / 3) ** 0.5)
    noted = [] if window is None else [f"text beyond {window} tokens saw only so many before it; now all"]
    architecture, listed = parts.architecture(patch_size), [*differences, *noted]
    config = released_config(architecture, parts.question, text_config, tokenizer, "inst", family.lower(), listed)
    patterns = [
        (patch_embedding.replace(".", r"\."), "fusion.patch_linear.weight"),
        (r"(model\.(embed_tokens|norm|layers\.\d+)\..*|lm_head\.weight)", r"language_model.\1"),
    ]
    made = copied(renamed(list(weights.shapes), patterns, family))
    tokens = SpecialTokens.of(tokenizer)

    def table(old: Tensor) -> Tensor:
        rows = grown(old, text_config.vocab_size, new_ids)
        if tokens.vision_end in new_ids:  # SOLO closes an image by <vision>, which we name differently
            rows[tokens.vision_end] = rows[tokens.vision_start]
        return rows

    made |= {f"language_model.{key}": Made((key,), table) for key in (EMBED, HEAD) if key in weights.shapes}
    return Conversion(weights, config, tokenizer, new_parts(config) | made)
