"""A random Qwen2 as a folder that transformers saved, small enough to be trained in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer

TEXTS = [" the red box is in front of the green one"] * 3


def save_base(folder: Path, spare_rows: int = 0, **changes: Any) -> Path:
    """Weights, config and a tokenizer; `spare_rows`: rows of embeddings that no token of the base has."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen2Config(vocab_size=len(tokenizer) + spare_rows, **(sizes | heads | ends | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
