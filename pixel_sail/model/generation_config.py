"""generation_config.json of a model folder: how its answers are made where the caller says nothing.

The keys are transformers'. Read: max_new_tokens, do_sample, temperature, top_k, top_p, eos_token_id; and min_presence,
which is ours. Not read: beams; and repetition_penalty and its like, because an answer with several masks must repeat
[SEG] and <p>.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pixel_sail.errors import WeightsError
from pixel_sail.folders.files import GENERATION_CONFIG, read_settings
from pixel_sail.model.generation import Sampling

MAX_NEW_TOKENS = 32_768  # more are no answer
MAX_EOS = 100


def read_generation_config(folder: Path) -> tuple[Sampling, tuple[int, ...]]:
    """The folder's default Sampling, and token ids that end an answer besides its own; Sampling() without the file.

    Raises WeightsError for values that mean nothing.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return Sampling(), ()
    values = read_settings(path)

    def read(key: str, default: Any, kinds: tuple[type, ...], least: float, most: float) -> Any:
        value = values.get(key)
        value = default if value is None else value
        if type(value) not in kinds or not least <= value <= most:
            raise WeightsError(f"{path}: {key} is {value!r:.60}; give a number from {least} to {most}")
        return value

    sampled = values.get("do_sample") or False
    if not isinstance(sampled, bool):
        raise WeightsError(f"{path}: do_sample is {sampled!r:.60}; give true or false")
    plain = Sampling()
    sampling = Sampling(
        max_new_tokens=read("max_new_tokens", plain.max_new_tokens, (int,), 1, MAX_NEW_TOKENS),
        temperature=read("temperature", 1.0, (int, float), 0, 100) if sampled else 0.0,
        top_k=read("top_k", 0, (int,), 0, 2**31) if sampled else 0,
        top_p=read("top_p", 1.0, (int, float), math.ulp(0.0), 1) if sampled else 1.0,
        min_presence=read("min_presence", 0.0, (int, float), 0, 1),
    )
    return sampling, _eos(values.get("eos_token_id"), path)


def write_generation_config(folder: Path, sampling: Sampling, stop_id: int) -> None:
    """Write `sampling` (without its generator) and the token that ends an answer, for transformers and for us."""
    values: dict[str, Any] = {"eos_token_id": stop_id, "max_new_tokens": sampling.max_new_tokens}
    values["do_sample"] = sampling.temperature > 0
    if values["do_sample"]:
        values |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    if sampling.min_presence:
        values["min_presence"] = sampling.min_presence
    (folder / GENERATION_CONFIG).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _eos(value: Any, path: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > MAX_EOS or not all(type(token) is int and token >= 0 for token in ids):
        raise WeightsError(f"{path}: eos_token_id is {value!r:.60}; give a token id, or a list of them")
    return tuple(ids)
