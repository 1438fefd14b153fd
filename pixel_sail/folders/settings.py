"""The values of config.json: refused where no model can have them, before anything is built from them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import walk

# The largest values of these keys in a config.json: several times those of any published model. A loop over layers or
# an index over a vocabulary must not be begun for more. (pattern of the key, smallest, largest)
LIMITS = (
    (re.compile(r"vocab_size|n_vocab"), 1, 2**24),
    (re.compile(r"(num|n)_(hidden_)?layers?|(en|de)coder_layers|depths?|num_.*_layers|num_blocks"), 0, 1024),
    (re.compile(r"num_.*heads|num_heads|n_head|(en|de)coder_attention_heads"), 1, 4096),
    (re.compile(r"num_(local_|routed_)?experts|n_routed_experts"), 0, 4096),
    (re.compile(r"hidden_size|intermediate_size|.*_dim|dim|d_model|d_ff|ffn_dim|.*_hidden_size"), 0, 2**20),
    # of processors: pixels of a side, pixels of an image (Qwen's edges), tokens of an image
    (re.compile(r"height|width"), 0, 2**14),
    (re.compile(r"(shortest|longest)_edge|(min|max)_pixels"), 0, 2**27),
    (re.compile(r"image_seq_length|num_additional_image_tokens|mm_tokens_per_image"), 0, 2**16),
    (re.compile(r"max_position_embeddings|n_positions|image_size|patch_size|num_queries"), 0, 2**31),
)
MAX_NUMBER = 2.0**63  # of any other value
_INFINITE = "time_step_limit"  # Mamba's upper limit is Infinity
_EPS = re.compile(r".*(norm|layer)_(eps|epsilon)")
_DTYPE_KEYS = ("dtype", "torch_dtype")


def check_settings(settings: dict[str, Any], path: Path) -> None:
    """Raise WeightsError for a value that no model has, whatever its type; `path` is the config.json."""
    for key, value, _ in walk(settings):
        problem = _problem(_name(key), value)
        if problem:
            shown = str(value) if len(str(value)) < 40 else f"{str(value)[:37]}..."
            raise WeightsError(f"{path}: {key} is {shown}; {problem}")


def check_decoder(config: PretrainedConfig, path: Path) -> None:
    """Raise WeightsError for a decoder's config that describes none that can run; `path` is its config.json."""

    def require(holds: bool, key: str, value: Any, expected: str) -> None:
        if not holds:
            raise WeightsError(f"{path}: {key} is {value!r}; {expected}")

    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        value = getattr(config, key, None)
        require(_is_count(value) and value > 0, key, value, "a decoder has a whole number above 0 there")
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = getattr(config, "num_key_value_heads", None)
    kv_heads = heads if kv_heads is None else kv_heads
    require(
        _is_count(kv_heads) and kv_heads > 0 and heads % kv_heads == 0,
        "num_key_value_heads",
        kv_heads,
        f"it must divide num_attention_heads {heads}",
    )
    if getattr(config, "head_dim", None) is None:
        require(hidden % heads == 0, "num_attention_heads", heads, f"it must divide hidden_size {hidden}")
    else:
        require(
            _is_count(config.head_dim) and config.head_dim > 0,
            "head_dim",
            config.head_dim,
            "it must be a whole number above 0",
        )
    activation = getattr(config, "hidden_act", None)
    require(activation is None or activation in ACT2FN, "hidden_act", activation, f"known: {', '.join(sorted(ACT2FN))}")
    _check_rope(getattr(config, "rope_parameters", None), path)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _check_ids(key, getattr(config, key, None), config.vocab_size, path)


def _check_rope(rope: Any, path: Path) -> None:
    """`rope_parameters` of a config, or one such dict for each type of layer."""
    if not isinstance(rope, dict):
        return
    for name, values in ({"rope_parameters": rope} | {k: v for k, v in rope.items() if isinstance(v, dict)}).items():
        theta = values.get("rope_theta", 1.0)
        if not isinstance(theta, int | float) or not 0 < theta < math.inf:
            raise WeightsError(f"{path}: rope_theta of {name} is {theta!r}; give a number above 0")
        for key in ("factor", "partial_rotary_factor", "attention_factor"):
            value = values.get(key)
            if value is not None and (not isinstance(value, int | float) or not 0 < value < math.inf):
                raise WeightsError(f"{path}: {key} of {name} is {value!r}; give a number above 0")


def _check_ids(key: str, value: Any, vocabulary: int, path: Path) -> None:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        padding = key == "pad_token_id" and token == -1  # Llama's first config.json says so; nothing is padded here
        if not padding and not (_is_count(token) and token < vocabulary):
            raise WeightsError(f"{path}: {key} is {value!r}; the vocabulary has ids from 0 to {vocabulary - 1}")


def _name(key: str) -> str:
    """The last part of a dotted key that is a word: a value in a list is judged by the name of the list."""
    return next((part for part in reversed(key.split(".")) if not part.isdigit()), key)


def _problem(name: str, value: Any) -> str | None:
    if name in _DTYPE_KEYS and value is not None and not isinstance(value, dict):
        dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
        known = value == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        return None if known else "weights have no such type; give float32, bfloat16 or float16"
    if name.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
        return "attention kernels are not downloaded; remove this key"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _EPS.fullmatch(name) and not 0 < value < 1:
        return "it must lie between 0 and 1"
    if name == "rope_theta" and not 0 < value < math.inf:
        return "it must be a number above 0"
    for pattern, smallest, largest in LIMITS:
        if pattern.fullmatch(name) and not smallest <= value <= largest:
            return f"{smallest:,} to {largest:,} are accepted"
    if not abs(value) <= MAX_NUMBER and name != _INFINITE:
        return f"at most {MAX_NUMBER:.0e} is accepted"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
