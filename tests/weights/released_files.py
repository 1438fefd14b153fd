"""Folders in the form in which each base is released: the names, splits and kinds of its files, at tiny width."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from reference_bases import EVEV2, SAIL, SOLO, Base, weights_of
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pixel_sail.weights.convert.scratch import train_tokenizer

TEXTS = ["Where is the red mug on the table?", "Please segment the ball.", "It is here."] * 30
IMAGE_TOKENS = ("<vision>", "</vision>", "<vrow_sep>", "<vpatch>")


def sail_files(folder: Path) -> dict[str, Tensor]:
    """SAIL-7B: config.json, tokenizer.json, one pytorch_model.bin in bf16; `inv_freq` as older programs save it."""
    weights = {name: tensor.bfloat16() for name, tensor in weights_of(SAIL).items()}
    folder.mkdir(parents=True)
    _write_settings(folder, SAIL, bos_token_id=1, eos_token_id=2)
    computed = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(SAIL.layers)}
    torch.save(weights | computed, folder / "pytorch_model.bin")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<vision>", "<vpatch>", "</vision>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return weights


def solo_files(folder: Path) -> dict[str, Tensor]:
    """SOLO-7B: config.json, three safetensors with an index, tokenizer.model alone, whose vocabulary has </vision>."""
    weights = weights_of(SOLO)
    _write_shards(folder, weights, 3)
    _write_settings(folder, SOLO, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return weights


def eve_files(folder: Path) -> dict[str, Tensor]:
    """EVE-7B-HD-v2.0: config.json, six safetensors with an index, the files of Qwen2's tokenizer."""
    weights = weights_of(EVEV2)
    _write_shards(folder, weights, 6)
    _write_settings(folder, EVEV2, kind="qwen2")
    train_tokenizer(TEXTS, 290).save_pretrained(folder)
    return weights


def sentencepiece_model() -> bytes:
    """A tokenizer.model as Mistral's, with bytes as a fallback and the tokens of images as pieces of its own."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=330, hard_vocab_limit=False, model_type="bpe",
        byte_fallback=True, user_defined_symbols=list(IMAGE_TOKENS), normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def _write_settings(folder: Path, base: Base, kind: str = "mistral", **more: int) -> None:
    heads = {"num_attention_heads": base.heads, "num_key_value_heads": base.kv_heads}
    (folder / "config.json").write_text(json.dumps(base.settings | heads | {"model_type": kind} | more))


def _write_shards(folder: Path, weights: dict[str, Tensor], count: int) -> None:
    folder.mkdir(parents=True)
    where = dict(zip(sorted(weights), _files(len(weights), count), strict=True))
    for file in set(where.values()):
        save_file({name: tensor for name, tensor in weights.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _files(weights: int, count: int) -> Iterable[str]:
    return (f"model-{1 + i * count // weights:05d}-of-{count:05d}.safetensors" for i in range(weights))
