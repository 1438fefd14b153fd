"""What the released bases have in common: a decoder in its own names beside config.json and the tokenizer's files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.tokens import add_special_tokens
from pixel_sail.weights.convert.streaming import WeightFiles

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json as plain values; FileNotFoundError where there is none."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} needs config.json; give the folder of a downloaded checkpoint")
    return json.loads((folder / "config.json").read_text())


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with our special tokens, and the ids of those that are new."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{folder} has no tokenizer that transformers can load: {error}") from None
    added = add_special_tokens(tokenizer)
    return tokenizer, list(range(len(tokenizer) - added, len(tokenizer)))


def require_tokens(tokenizer: PreTrainedTokenizerBase, new_ids: list[int], names: Sequence[str], family: str) -> None:
    """Raises ValueError where one of `names`, which the base was trained with, had to be added."""
    lacking = [name for name in names if tokenizer.convert_tokens_to_ids(name) in new_ids]
    if lacking:
        raise ValueError(f"the tokenizer lacks {', '.join(lacking)}: it does not belong to {family} weights")


def renamed(names: Sequence[str], patterns: Sequence[tuple[str, str]], family: str) -> dict[str, str]:
    """Our name -> the file's by the first of `patterns` (theirs, ours) that matches it whole.

    Raises ValueError that lists every name that none matches.
    """
    found, unknown = {}, []
    for name in names:
        ours = next((re.sub(theirs, ours, name) for theirs, ours in patterns if re.fullmatch(theirs, name)), None)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = name
    if unknown:
        raise ValueError(f"keys that no {family} checkpoint has: {sorted(unknown)}")
    return found


def decoder_config(
    kind: type[PretrainedConfig],
    weights: WeightFiles,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    **more: Any,  # of this kind alone, as its config class names it
) -> PretrainedConfig:
    """The decoder's config: sizes from the weights, and from config.json only what they do not show."""
    vocabulary, hidden = shape(weights, EMBED)
    layers = {int(found[1]) for key in weights.shapes if (found := re.match(r"model\.layers\.(\d+)\.", key))}
    return kind(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=shape(weights, "model.layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=len(layers),
        num_attention_heads=setting(settings, weights.folder, "num_attention_heads"),
        num_key_value_heads=setting(settings, weights.folder, "num_key_value_heads"),
        rms_norm_eps=setting(settings, weights.folder, "rms_norm_eps"),
        rope_parameters={"rope_type": "default", "rope_theta": _rope_theta(settings, weights.folder)},
        max_position_embeddings=setting(settings, weights.folder, "max_position_embeddings"),
        tie_word_embeddings=HEAD not in weights.shapes,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **more,
    )


def shape(weights: WeightFiles, name: str) -> tuple[int, ...]:
    if name not in weights.shapes:
        raise ValueError(f"missing {name}: the weights in {weights.folder} are not of this family, or not complete")
    return weights.shapes[name]


def setting(settings: dict[str, Any], folder: Path, *names: str) -> Any:
    """The first of `names` that config.json has; ValueError where it has none."""
    for name in names:
        if name in settings:
            return settings[name]
    raise ValueError(f"{folder / 'config.json'} lacks {' or '.join(names)}, which the weights do not show")


def _rope_theta(settings: dict[str, Any], folder: Path) -> float:
    """From `rope_theta`, or from `rope_parameters` as newer files have it. Scaled frequencies are refused."""
    rope = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    if {**rope, **scaling}.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError(f"{folder / 'config.json'} scales its rotary frequencies, which no base of this family does")
    return setting(settings | rope, folder, "rope_theta")
