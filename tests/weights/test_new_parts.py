"""Initialization of a new model: sizes of new tokens and prompts, differences between prompts, attention heads."""

from __future__ import annotations

import torch

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.tokens import PROMPTS, SEG
from pixel_sail.weights.convert.scratch import from_scratch

TEXTS = ["the red mug on the left of a large box", "what is it?"] * 5


def new_model(kv_heads: int = 4):
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=64, layers=2, heads=4, kv_heads=kv_heads, mlp_size=96, vocab_size=400)
    return from_scratch(ModelSection(scratch=scratch), Architecture(patch_size=8), TEXTS, "{expression}")


def test_new_tokens_have_the_size_of_words_and_are_as_distinct() -> None:
    model, tokenizer = new_model()
    embeddings = model.get_input_embeddings().weight.detach()
    words = embeddings[1:200]
    new = embeddings[tokenizer.convert_tokens_to_ids([SEG, *PROMPTS])]
    assert 0.7 < new.std() / words.std() < 1.4
    similar = torch.nn.functional.cosine_similarity(new[:, None], new[None], dim=-1) - torch.eye(len(new))
    assert similar.abs().max() < 0.6


def test_a_prompt_has_the_size_of_a_patch_and_is_like_its_name() -> None:
    model, tokenizer = new_model()
    names = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(list(PROMPTS))]
    added = model.fusion.prompt_linear(names).detach()
    patches = model.fusion.patch_linear(torch.full((1, 192), 1.0)).detach()  # an even patch, one sigma bright
    assert 0.7 < added.std() < 1.4 and 0.2 < patches.std() < 3
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(added, names), torch.ones(len(PROMPTS)))


def test_a_word_is_one_token_wherever_it_stands() -> None:
    model, tokenizer = new_model()
    assert model.config.chat_format == "template"
    first, later = (tokenizer(f"<|im_start|> {text}<|im_end|>")["input_ids"] for text in ("mug", "the mug"))
    assert first[1] == later[2] and len(first) == 3


def test_similar_heads_only_where_each_has_its_own_keys() -> None:
    attention = new_model()[0].language_model.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight[32:], attention.q_proj.weight[32:])
    assert not torch.equal(attention.k_proj.weight[:32], attention.q_proj.weight[:32])
    torch.testing.assert_close(attention.o_proj.weight, attention.v_proj.weight.T)
    assert new_model(kv_heads=2)[0].language_model.model.layers[0].self_attn.k_proj.weight.shape == (32, 64)
