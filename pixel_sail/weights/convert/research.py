"""Checkpoints of the research code of Pixel-SAIL (arXiv 2504.10465). Every key must be known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config

from pixel_sail.architecture import MAX_MASK_CHANNELS, Architecture
from pixel_sail.errors import WeightsError
from pixel_sail.folders.listing import SAFE
from pixel_sail.folders.load import load_tokenizer
from pixel_sail.folders.weight_files import WeightFiles, folder_of
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import GROUNDING_TOKENS, add_special_tokens
from pixel_sail.weights.convert.evev2 import CONV1, SIDE_PX, WAYS, evev2_conversion
from pixel_sail.weights.convert.new_parts import model_config
from pixel_sail.weights.convert.released import (
    EMBED,
    HEAD,
    built_decoder,
    count_layers,
    read_settings,
    read_tokenizer,
    renamed,
    setting,
    shape,
)
from pixel_sail.weights.convert.streaming import Conversion, DerivedWeight, copied, load

QUESTION = "Please segment {expression} in this image."  # of the research code

_DECODER = "single_transformer."
# Patterns of research keys -> ours. The first pattern that matches gives the name.
_MASK_HEAD = [
    (r"image_feature_pre_projector\.(\d)\.(weight|bias)", r"mask_head.reduce.\1.\2"),
    (r"upsample_blocks\.(\d+)\.0\.(weight|bias)", r"mask_head.blocks.\1.up.\2"),
    (r"upsample_blocks\.(\d+)\.2\.(depthwise|pointwise)\.(weight|bias)", r"mask_head.blocks.\1.\2.\3"),
    (r"upsample_blocks\.(\d+)\.3\.ln\.(weight|bias)", r"mask_head.blocks.\1.norm.\2"),
    (r"image_feature_projector\.(\d)\.(weight|bias)", r"mask_head.pixel_projector.\1.\2"),
    (r"seg_token_projector\.(\d)\.(weight|bias)", r"mask_head.seg_projector.\1.\2"),
]
_RENAMES = [
    (r"single_transformer\.model\.vis_embed\.weight", "fusion.patch_linear.weight"),
    (r"single_transformer\.model\.vp_embed\.weight", "fusion.prompt_linear.weight"),
    (r"single_transformer\.(model\..*|lm_head\.weight)", r"language_model.\1"),
    *_MASK_HEAD,
]


def from_research(source: Path, question: str = QUESTION) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """The model in memory, float32, and its tokenizer. Errors as in `plan_research`."""
    plan = plan_research(source, question)
    return load(plan), plan.tokenizer


def plan_research(source: Path, question: str = QUESTION) -> Conversion:
    """The conversion of a folder with config.json, *.safetensors or iter_N.pth, and tokenizer/ or its files.

    `source` may be one of several iter_N.pth. Beside it may be the tokenizer of the base that the run started from: the
    research code adds its tokens to that, in our order, whenever it starts. Raises WeightsError for missing files, and
    for unknown keys, with a list of them.
    """
    folder = folder_of(source)
    settings, files = read_settings(folder), WeightFiles(source, pickled=True)
    if settings.get("tie_word_embeddings"):
        files.drop_copies({f"{_DECODER}{HEAD}": f"{_DECODER}{EMBED}"})
    tokenizer_folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if f"{_DECODER}{CONV1}" in files.shapes:
        files.strip(_DECODER)
        return _plan_7b(files, settings, tokenizer_folder, question)
    names = renamed(list(files.shapes), _RENAMES, "research Pixel-SAIL")
    tokenizer, new_ids = read_tokenizer(tokenizer_folder)
    from_base = files.paths[0].suffix != SAFE and tokenizer.convert_ids_to_tokens(new_ids) == list(GROUNDING_TOKENS)
    if new_ids and not from_base:
        raise WeightsError(
            f"the tokenizer in {tokenizer_folder} lacks special tokens; it does not belong to these weights"
        )
    derived = _derived(names)
    return Conversion(files, _config(files, names, settings, tokenizer, question), tokenizer, derived)


def _plan_7b(files: WeightFiles, settings: dict[str, Any], tokenizer_folder: Path, question: str) -> Conversion:
    """Pixel-SAIL's 7B: EVEv2 with its ways, and a mask head. <PromptN> is added without a linear."""
    tokenizer = load_tokenizer(tokenizer_folder)
    known = tokenizer.get_vocab()
    lacking = [name for name in GROUNDING_TOKENS if name not in known]
    if lacking and lacking != list(GROUNDING_TOKENS):
        raise WeightsError(f"the tokenizer in {tokenizer_folder} lacks {', '.join(lacking)}, and has others of the run")
    tokenizer.add_tokens(lacking, special_tokens=True)  # as the research code does: before our tokens of an image
    rows = shape(files, EMBED)[0]
    if len(tokenizer) > rows:
        raise WeightsError(f"the tokenizer in {tokenizer_folder} has {len(tokenizer)} tokens, the weights {rows} rows")
    added = add_special_tokens(tokenizer)
    new_ids = list(range(len(tokenizer) - added, len(tokenizer)))
    names = renamed([name for name in files.shapes if not name.startswith(("model.", HEAD))], _MASK_HEAD, "research")
    blocks, mask_dim = _head_sizes(files, names)

    def architecture(patch_size: int, **base: Any) -> Architecture:
        channels = [min(shape(files, EMBED)[1], MAX_MASK_CHANNELS)] * (blocks + 1)
        return Architecture(
            patch_size=patch_size, max_side_px=SIDE_PX, mask_stride=patch_size // 2**blocks, mask_dim=mask_dim,
            mask_channels=channels, **WAYS, **base,
        )  # fmt: skip

    described = {"chat_format": "research", "question": question, "converted_from": "research Pixel-SAIL"}
    return evev2_conversion(
        files, settings, (tokenizer, new_ids), architecture, _derived(names), described | {"differences": []}
    )


def _derived(names: dict[str, str]) -> dict[str, DerivedWeight]:
    kernels = {ours: theirs for ours, theirs in names.items() if ".pointwise.weight" in ours}
    return copied(names) | {ours: DerivedWeight((theirs,), _linear) for ours, theirs in kernels.items()}


def _head_sizes(files: WeightFiles, names: dict[str, str]) -> tuple[int, int]:
    """Upsampling blocks and width of the mask features."""
    blocks = {int(match[1]) for key in names if (match := re.match(r"mask_head\.blocks\.(\d+)\.", key))}
    return len(blocks), _shape(files, names, "mask_head.pixel_projector.2.weight")[0]


def _linear(kernel: Tensor) -> Tensor:
    """Our pointwise layer is a linear; in the research code it is a 1x1 convolution."""
    return kernel[:, :, 0, 0]


def _config(
    files: WeightFiles,
    names: dict[str, str],
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    question: str,
) -> PixelSailConfig:
    """Sizes come from the weights; config.json is read only for what the weights do not show."""
    folder = files.folder
    vocabulary, hidden = _shape(files, names, "language_model.model.embed_tokens.weight")
    layers = count_layers(files, r"single_transformer\.model\.layers\.(\d+)\.", settings)
    blocks, mask_dim = _head_sizes(files, names)
    values = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=_shape(files, names, "language_model.model.layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=layers,
        num_attention_heads=setting(settings, folder, "heads", "num_attention_heads"),
        num_key_value_heads=setting(settings, folder, "kv_heads", "num_key_value_heads"),
        rms_norm_eps=setting(settings, folder, "rms_norm_eps"),
        rope_parameters={"rope_type": "default", "rope_theta": setting(settings, folder, "rope_theta")},
        tie_word_embeddings="language_model.lm_head.weight" not in names,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    text_config = built_decoder(Qwen2Config, values, folder)
    patch_size = round((_shape(files, names, "fusion.patch_linear.weight")[1] / 3) ** 0.5)
    architecture = Architecture(
        patch_size=patch_size,
        max_side_px=1024 // patch_size * patch_size,
        mask_stride=patch_size // 2**blocks,
        mask_dim=mask_dim,
        mask_channels=[min(hidden, MAX_MASK_CHANNELS)] * (blocks + 1),
    )
    return model_config(
        text_config,
        architecture,
        tokenizer,
        "research",
        question,
        converted_from="research Pixel-SAIL",
        differences=[],
    )


def _shape(files: WeightFiles, names: dict[str, str], ours: str) -> tuple[int, ...]:
    if ours not in names:
        raise WeightsError(f"{files.folder}: the weights lack what becomes {ours}")
    return files.shapes[names[ours]]
