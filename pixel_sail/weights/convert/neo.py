"""NEO (arXiv 2510.14979): Qwen3 with layers before it, all of them with queries and keys for rows and columns.

The layers before it are layers like the others, the first ones. Two convolutions embed the patches. Its ways with
images are options of the architecture (WAYS). The tokens <img> and </img> become our <vision> and </vision>, and the
bias of the second convolution the embedding of <vpatch>, which is added to every patch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Qwen3Config

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import CONFIG
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
    require_tokens,
    setting,
    shape,
)
from pixel_sail.weights.convert.streaming import Conversion, DerivedWeight, copied

WAYS = {
    "image_attention": "patches",
    "image_positions": "one_step",
    "resize_by": "nearest",
    "resize_filter": "bicubic",
}
IMAGE_TOKENS = ("<img>", "</img>")

DECODER, VISION = "language_model.", "vision_model.embeddings."
CONV1, BIAS1 = f"{VISION}patch_embedding.weight", f"{VISION}patch_embedding.bias"
CONV2, BIAS2 = f"{VISION}dense_embedding.weight", f"{VISION}dense_embedding.bias"
PATTERNS = [(r"(language_model\.(model\.(embed_tokens|norm|layers\.\d+)\..*|lm_head\.weight))", r"\1")]

DIFFERENCES = (
    "images had up to 2048 x 2048 pixels; now up to `max_side_px` squared",
    "an image stood in the first question; now it comes first, and questions are written in `chat_format`",
)


def plan_neo(folder: Path, parts: NewParts) -> Conversion:
    """Raises WeightsError for missing files, and for weights, a tokenizer or a config that are not NEO's."""
    settings, files = read_settings(folder), WeightFiles(folder, pickled=True)
    decoder, vision = (_section(settings, folder, key) for key in ("llm_config", "vision_config"))
    tokenizer, new_ids = read_tokenizer(folder)
    require_tokens(tokenizer, new_ids, IMAGE_TOKENS, "NEO")
    head_dim = setting(decoder, folder, "head_dim")
    text_config = decoder_config(Qwen3Config, files, decoder, tokenizer, DECODER, head_dim=head_dim)
    width, _, sub_patch_size, _ = shape(files, CONV1)
    architecture = parts.architecture(
        sub_patch_size * shape(files, CONV2)[-1],
        sub_patch_size=sub_patch_size,
        sub_patch_width=width,
        sub_patch_theta=setting(vision, folder, "rope_theta_vision"),
        axis_theta=setting(decoder, folder, "rope_theta_hw"),
        **WAYS,
    )
    config = model_config(
        text_config,
        architecture,
        tokenizer,
        "auto",
        parts.question,
        converted_from="neo",
        differences=list(DIFFERENCES),
    )
    names = renamed([key for key in files.shapes if key not in (CONV1, BIAS1, CONV2, BIAS2)], PATTERNS, "NEO")
    derived = copied(names) | _fusion()
    tokens, rows = SpecialTokens.of(tokenizer), text_config.vocab_size
    opening, closing = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS))

    def table(old: Tensor, patch: Tensor) -> Tensor:
        grown_rows = grown(old, rows, new_ids)
        grown_rows[tokens.vision_start], grown_rows[tokens.vision_end] = old[opening], old[closing]
        grown_rows[tokens.vision_patch] = patch
        return grown_rows

    derived[DECODER + EMBED] = DerivedWeight((DECODER + EMBED, BIAS2), table)
    if DECODER + HEAD in files.shapes:
        derived[DECODER + HEAD] = DerivedWeight((DECODER + HEAD,), lambda old: grown(old, rows, new_ids))
    return Conversion(files, config, tokenizer, new_parts(config) | derived)


def _section(settings: dict[str, Any], folder: Path, key: str) -> dict[str, Any]:
    section = settings.get(key)
    if not isinstance(section, dict):
        raise WeightsError(f"{folder / CONFIG} has no section {key}: it is not NEO's")
    return section


def _fusion() -> dict[str, DerivedWeight]:
    return {
        "fusion.sub_patch_linear.weight": DerivedWeight((CONV1,), lambda kernel: kernel.flatten(1)),
        "fusion.sub_patch_linear.bias": DerivedWeight((BIAS1,), lambda bias: bias),
        # (D, m, row, column) -> (D, row column m): our sub-patches follow one another
        "fusion.patch_linear.weight": DerivedWeight((CONV2,), lambda kernel: kernel.permute(0, 2, 3, 1).flatten(1)),
    }
