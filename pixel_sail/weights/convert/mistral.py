"""What SOLO and SAIL share: MistralForCausalLM under its own names, and one linear over patches, added to <vpatch>."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import MistralConfig

from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.tokens import SpecialTokens
from pixel_sail.weights.convert.new_parts import NewParts, grown, model_config, new_parts
from pixel_sail.weights.convert.released import (
    EMBED,
    HEAD,
    decoder_config,
    name_ends,
    read_settings,
    read_tokenizer,
    renamed,
    require_tokens,
    shape,
)
from pixel_sail.weights.convert.streaming import Conversion, DerivedWeight, copied


def mistral_conversion(
    folder: Path,
    parts: NewParts,
    family: str,
    patch_embedding: str,
    known_tokens: Sequence[str],
    differences: Sequence[str],
    closed_by_start: bool = False,
) -> Conversion:
    """The conversion of a SOLO or SAIL checkpoint.

    `patch_embedding`: the key of the (D, 3 P P) linear; `known_tokens`: our special tokens that the base was trained
    with; `differences`: what the base did otherwise, for config.json and the user; `closed_by_start`: the base closed
    an image with <vision>, whose rows </vision> gets, also where the vocabulary has it: untrained.

    Raises WeightsError for missing files, and for weights or a tokenizer that are not of the family.
    """
    settings, files = read_settings(folder), WeightFiles(folder, pickled=True)
    tokenizer, new_ids = read_tokenizer(folder)
    require_tokens(tokenizer, new_ids, known_tokens, family)
    name_ends(tokenizer, settings)
    window = settings.get("sliding_window")
    text_config = decoder_config(
        MistralConfig, files, settings, tokenizer, sliding_window=None, head_dim=settings.get("head_dim")
    )
    patch_size = round((shape(files, patch_embedding)[1] / 3) ** 0.5)
    if window is not None:
        differences = [*differences, f"text beyond {window} tokens saw only that many before it; now all"]
    architecture = parts.architecture(patch_size)
    config = model_config(
        text_config,
        architecture,
        tokenizer,
        "inst",
        parts.question,
        converted_from=family.lower(),
        differences=list(differences),
    )
    patterns = [
        (patch_embedding.replace(".", r"\."), "fusion.patch_linear.weight"),
        (r"(model\.(embed_tokens|norm|layers\.\d+)\..*|lm_head\.weight)", r"language_model.\1"),
    ]
    derived = copied(renamed(list(files.shapes), patterns, family))
    tokens = SpecialTokens.of(tokenizer)

    def table(old: Tensor) -> Tensor:
        rows = grown(old, text_config.vocab_size, new_ids)
        if closed_by_start:
            rows = rows.clone() if rows is old else rows  # `old` may be the file itself
            rows[tokens.vision_end] = rows[tokens.vision_start]
        return rows

    derived |= {f"language_model.{key}": DerivedWeight((key,), table) for key in (EMBED, HEAD) if key in files.shapes}
    return Conversion(files, config, tokenizer, new_parts(config) | derived)
