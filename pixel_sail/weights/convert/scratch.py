"""A small decoder with random weights, and a byte-level tokenizer trained on the text of the data: no download."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.weights.convert.language_model import assemble

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Short, and with a space before question and answer: so a word is the same token at their start and inside them.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}<|im_start|> {{ message.content }}<|im_end|>"
    "{% else %} {{ message.content }}<|endoftext|>{% endif %}{% endfor %}"
)


def from_scratch(
    section: ModelSection, architecture: Architecture, texts: Iterable[str], question: str, hide: str = "none"
) -> tuple[PixelSail, PreTrainedTokenizerBase]:
    """A PixelSail of `section.scratch`, float32, and a tokenizer trained on `texts`. Seed torch before the call."""
    tokenizer = train_tokenizer((f" {text}" for text in texts), section.scratch.vocab_size)
    tokenizer.chat_template = CHAT_TEMPLATE
    decoder = Qwen2ForCausalLM(scratch_decoder(section.scratch, tokenizer))
    _start_local_attention(decoder, section.scratch)
    _start_similarity_attention(decoder, section.scratch)
    model, tokenizer = assemble(decoder, tokenizer, section.chat_format, architecture, question, hide)
    _start_prompts(model)
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE, which can encode every text. Words of `texts` become single tokens while there is room."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(CHAT_TOKENS), show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = CHAT_TOKENS[0]
    return tokenizer


def scratch_decoder(scratch: ScratchConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """The decoder's config; the vocabulary is that of `tokenizer`."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.mlp_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": scratch.rope_theta},
        tie_word_embeddings=True,
        initializer_range=scratch.hidden_size
        ** -0.5,  # the usual 0.02 suits wide models and is too small for narrow ones
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


@torch.no_grad()
def _start_local_attention(decoder: Qwen2ForCausalLM, scratch: ScratchConfig) -> None:
    """Half of the heads start by attending to neighbours, in the text and in the image.

    With equal constant biases on queries and keys, the score of two tokens is a sum of cosines of their rotary angle
    differences, which is largest for neighbours. This is only an initialization; it shortens the plateau of short runs.
    """
    head_dim = scratch.hidden_size // scratch.heads
    kv_heads = scratch.kv_heads // 2
    for layer in decoder.model.layers:
        layer.self_attn.k_proj.bias[: kv_heads * head_dim] = 1.0
        layer.self_attn.q_proj.bias[: kv_heads * head_dim * (scratch.heads // scratch.kv_heads)] = 1.0


@torch.no_grad()
def _start_similarity_attention(decoder: Qwen2ForCausalLM, scratch: ScratchConfig) -> None:
    """The other heads start by attending to similar tokens, and all heads pass on the values almost unmixed.

    Key projections start as query projections, and the output projection as the transpose of the value projection
    (after "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828). Nothing is done with grouped-query
    attention, where a query head has no key head of its own.
    """
    if scratch.heads != scratch.kv_heads:
        return
    first = scratch.kv_heads // 2 * (scratch.hidden_size // scratch.heads)
    for layer in decoder.model.layers:
        layer.self_attn.k_proj.weight[first:] = layer.self_attn.q_proj.weight[first:]
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)


@torch.no_grad()
def _start_prompts(model: PixelSail) -> None:
    """A patch inside a prompt starts out similar to the embedding of the prompt's name.

    With torch's initialization, embedded patches of normalized pixels have about unit size, ten times that of a new
    token embedding. So the prompt is scaled to unit size too; otherwise the patch would hide it.
    """
    linear = model.fusion.prompt_linear
    if linear is not None:  # with pooled regions nothing is added to patches
        embeddings = model.language_model.get_input_embeddings().weight
        linear.weight.copy_(torch.eye(len(linear.weight)) / embeddings.std())
