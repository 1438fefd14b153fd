"""The research code's Pixel-SAIL checkpoints (SPEC section 2): names and shapes to ours, every key accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config

from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens

# Patterns of research keys -> ours; the first that matches names the key.
_RENAMES = [
    (r"single_transformer\.model\.vis_embed\.weight", "fusion.patch_linear.weight"),
    (r"single_transformer\.model\.vp_embed\.weight", "fusion.prompt_linear.weight"),
    (r"single_transformer\.(model\..*|lm_head\.weight)", r"language_model.\1"),
    (r"image_feature_pre_projector\.(\d)\.(weight|bias)", r"mask_head.reduce.\1.\2"),
    (r"upsample_blocks\.(\d+)\.0\.(weight|bias)", r"mask_head.blocks.\1.up.\2"),
    (r"upsample_blocks\.(\d+)\.2\.(depthwise|pointwise)\.(weight|bias)", r"mask_head.blocks.\1.\2.\3"),
    (r"upsample_blocks\.(\d+)\.3\.ln\.(weight|bias)", r"mask_head.blocks.\1.norm.\2"),
    (r"image_feature_projector\.(\d)\.(weight|bias)", r"mask_head.pixel_projector.\1.\2"),
    (r"seg_token_projector\.(\d)\.(weight|bias)", r"mask_head.seg_projector.\1.\2"),
]


def from_research(
    folder: Path, question: str = "Please segment {expression} in this image."
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """Reads `folder` (config.json, *.safetensors, tokenizer/ or its files); a PixelSail in float32 and its tokenizer.

    Raises FileNotFoundError for missing files, ValueError that lists unknown, missing and mis-shaped keys.
    """
    weights = _rename(_read_weights(folder))
    tokenizer_folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    if add_special_tokens(tokenizer):
        raise ValueError(
            f"the tokenizer in {tokenizer_folder} lacks special tokens; it does not belong to these weights"
        )
    model = PixelSail(_config(folder, weights, tokenizer, question))
    _load(model, weights, folder)
    return model.eval(), tokenizer


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} needs config.json and at least one *.safetensors in research key names")
    return {key: value.float() for file in files for key, value in load_file(file).items()}


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, value in weights.items():
        name = next((re.sub(old, new, key) for old, new in _RENAMES if re.fullmatch(old, key)), None)
        if name is None:
            unknown.append(key)
            continue
        # The research code writes its pointwise layer as a 1x1 convolution.
        renamed[name] = value[:, :, 0, 0] if ".pointwise.weight" in name else value
    if unknown:
        raise ValueError(f"keys that no research Pixel-SAIL checkpoint has: {sorted(unknown)}")
    return renamed


def _config(
    folder: Path, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, question: str
) -> PixelSailConfig:
    """Sizes come from the weights; only what they do not show is read from config.json."""
    given = json.loads((folder / "config.json").read_text())
    vocabulary, hidden = _shape(weights, "language_model.model.embed_tokens.weight", folder)
    layers = {int(found[1]) for key in weights if (found := re.match(r"language_model\.model\.layers\.(\d+)\.", key))}
    blocks = {int(found[1]) for key in weights if (found := re.match(r"mask_head\.blocks\.(\d+)\.", key))}
    text_config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=_shape(weights, "language_model.model.layers.0.mlp.gate_proj.weight", folder)[0],
        num_hidden_layers=len(layers),
        num_attention_heads=_setting(given, folder, "heads", "num_attention_heads"),
        num_key_value_heads=_setting(given, folder, "kv_heads", "num_key_value_heads"),
        rms_norm_eps=_setting(given, folder, "rms_norm_eps"),
        rope_parameters={"rope_type": "default", "rope_theta": _setting(given, folder, "rope_theta")},
        tie_word_embeddings="language_model.lm_head.weight" not in weights,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return PixelSailConfig(
        text_config=text_config,
        patch_size=round((_shape(weights, "fusion.patch_linear.weight", folder)[1] / 3) ** 0.5),
        mask_dim=_shape(weights, "mask_head.pixel_projector.2.weight", folder)[0],
        mask_channels=[min(hidden, 1024)] * (len(blocks) + 1),
        chat_format="research",
        question=question,
        prompt_token_ids=list(SpecialTokens.of(tokenizer).prompts),
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def _shape(weights: dict[str, Tensor], name: str, folder: Path) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"{folder}: the weights lack what becomes {name}")
    return tuple(weights[name].shape)


def _setting(given: dict[str, Any], folder: Path, *names: str) -> Any:
    for name in names:
        if name in given:
            return given[name]
    raise ValueError(f"{folder / 'config.json'} lacks {' or '.join(names)}, which the weights do not show")


def _load(model: PixelSail, weights: dict[str, Tensor], folder: Path) -> None:
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    problems = [
        *(f"missing {name}" for name in sorted(own.keys() - weights.keys())),
        *(f"unexpected {name}" for name in sorted(weights.keys() - own.keys())),
        *(
            f"wrong shape {name}: file {tuple(weights[name].shape)}, model {tuple(own[name].shape)}"
            for name in sorted(own.keys() & weights.keys())
            if own[name].shape != weights[name].shape
        ),
    ]
    if problems:
        raise ValueError(f"the weights in {folder} do not fit together: {'; '.join(problems)}")
    model.load_state_dict(weights, strict=False)
