"""What the released bases share: config.json, the tokenizer's files, and a decoder under its own names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pixel_sail.errors import WeightsError
from pixel_sail.folders import files as folder_files
from pixel_sail.folders.files import CONFIG
from pixel_sail.folders.load import in_a_line, load_tokenizer
from pixel_sail.folders.settings import check_decoder, check_settings
from pixel_sail.folders.weight_files import WeightFiles
from pixel_sail.tokens import add_special_tokens

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_settings(folder: Path) -> dict[str, Any]:
    """The values of config.json. Raises WeightsError if it is missing, or has a value that no model has."""
    if not (folder / CONFIG).exists():
        raise WeightsError(f"{folder} needs config.json; give the folder of a downloaded checkpoint")
    settings = folder_files.read_settings(folder / CONFIG)
    check_settings(settings, folder / CONFIG)
    return settings


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with our special tokens added, and the ids of the new tokens. Raises WeightsError."""
    tokenizer = load_tokenizer(folder)
    added = add_special_tokens(tokenizer)
    return tokenizer, list(range(len(tokenizer) - added, len(tokenizer)))


def require_tokens(tokenizer: PreTrainedTokenizerBase, new_ids: list[int], names: Sequence[str], family: str) -> None:
    """Raise WeightsError if one of `names`, tokens that the base was trained with, is missing or had to be added."""
    known = tokenizer.get_vocab()
    lacking = [name for name in names if name not in known or known[name] in new_ids]
    if lacking:
        raise WeightsError(f"the tokenizer lacks {', '.join(lacking)}: it does not belong to {family} weights")


def name_ends(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> None:
    """Give the tokenizer the bos and eos tokens of config.json where it has none: a tokenizer.json alone says none."""
    for end in ("bos_token", "eos_token"):
        number = settings.get(f"{end}_id")
        if getattr(tokenizer, end) is None and type(number) is int and 0 <= number < len(tokenizer):
            setattr(tokenizer, end, tokenizer.convert_ids_to_tokens(number))


def renamed(names: Sequence[str], patterns: Sequence[tuple[str, str]], family: str) -> dict[str, str]:
    """Map our names to `names`; the first of `patterns` (theirs, ours) that matches a whole name translates it.

    Raises WeightsError that lists every name that no pattern matches.
    """
    by_our_name, unknown = {}, []
    for name in names:
        ours = next((re.sub(theirs, ours, name) for theirs, ours in patterns if re.fullmatch(theirs, name)), None)
        if ours is None:
            unknown.append(name)
        else:
            by_our_name[ours] = name
    if unknown:
        raise WeightsError(f"keys that no {family} checkpoint has: {sorted(unknown)}")
    return by_our_name


def decoder_config(
    kind: type[PretrainedConfig],
    files: WeightFiles,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prefix: str = "",  # of the decoder's weights in the files
    **extra: Any,  # settings of this kind alone, named as in its config class
) -> PretrainedConfig:
    """The decoder's config: sizes from the weights, and from config.json only what the weights do not show.

    Raises WeightsError for values that no decoder has.
    """
    if settings.get("tie_word_embeddings"):
        files.drop_copies({prefix + HEAD: prefix + EMBED})
    vocabulary, hidden = shape(files, prefix + EMBED)
    layers = count_layers(files, re.escape(prefix) + r"model\.layers\.(\d+)\.", settings)
    values = dict(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=shape(files, f"{prefix}model.layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=layers,
        num_attention_heads=setting(settings, files.folder, "num_attention_heads"),
        num_key_value_heads=setting(settings, files.folder, "num_key_value_heads"),
        rms_norm_eps=setting(settings, files.folder, "rms_norm_eps"),
        rope_parameters={"rope_type": "default", "rope_theta": _rope_theta(settings, files.folder)},
        max_position_embeddings=setting(settings, files.folder, "max_position_embeddings"),
        tie_word_embeddings=prefix + HEAD not in files.shapes,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **extra,
    )
    return built_decoder(kind, values, files.folder)


def count_layers(files: WeightFiles, pattern: str, settings: dict[str, Any]) -> int:
    """The number of layers of the files; `pattern` finds one in a name.

    Raises WeightsError if one is missing, also at the end: config.json says how many there are.
    """
    present = {int(match[1]) for name in files.shapes if (match := re.match(pattern, name))}
    count = settings.get("num_hidden_layers", max(present, default=-1) + 1)
    if type(count) is int and type(settings.get("extra_num_layers")) is int and len(present) > count:
        count += settings["extra_num_layers"]  # of NEO, whose configs count its first layers with the others or apart
    if present != set(range(count if type(count) is int else 0)):
        missing = sorted(set(range(count)) - present) if type(count) is int else []
        raise WeightsError(
            f"{files.folder}: config.json says num_hidden_layers {count}, the weights have {len(present)} layers"
            f"{f'; the first that is missing is layer {missing[0]}' if missing else ''}: a part of the checkpoint is "
            "missing, or they do not belong together"
        )
    return len(present)


def built_decoder(kind: type[PretrainedConfig], values: dict[str, Any], folder: Path) -> PretrainedConfig:
    """`kind(**values)`, checked. Raises WeightsError that names the config.json of `folder`."""
    check_settings(values, folder / CONFIG)
    try:
        config = kind(**values)
    except Exception as error:  # of values of a wrong type; transformers raises anything
        raise WeightsError(f"{folder / CONFIG} describes no {kind.__name__}: {in_a_line(error)}") from error
    check_decoder(config, folder / CONFIG)
    return config


def shape(files: WeightFiles, name: str) -> tuple[int, ...]:
    """The shape of a weight of the files, a table. Raises WeightsError if it is missing, or is none."""
    if name not in files.shapes:
        raise WeightsError(f"missing {name}: the weights in {files.folder} are not of this family, or not complete")
    return files.shapes[name]


def setting(settings: dict[str, Any], folder: Path, *names: str) -> Any:
    """The value of the first of `names` that config.json has. Raises WeightsError if it has none of them."""
    for name in names:
        if name in settings:
            return settings[name]
    raise WeightsError(f"{folder / 'config.json'} lacks {' or '.join(names)}, which the weights do not show")


def _rope_theta(settings: dict[str, Any], folder: Path) -> float:
    """`rope_theta` itself or, in newer files, inside `rope_parameters`. Raises WeightsError for scaled frequencies."""
    rope, scaling = (_dict(settings, folder, key) for key in ("rope_parameters", "rope_scaling"))
    if {**rope, **scaling}.get("rope_type", scaling.get("type", "default")) != "default":
        raise WeightsError(f"{folder / 'config.json'} scales its rotary frequencies, which no base of this family does")
    return setting(settings | rope, folder, "rope_theta")


def _dict(settings: dict[str, Any], folder: Path, key: str) -> dict[str, Any]:
    value = settings.get(key) or {}
    if not isinstance(value, dict):
        raise WeightsError(f"{folder / CONFIG}: {key} is {str(value)[:40]!r}; an object {{...}} is expected")
    return value
