"""Twins for visual tokens: every token through its own weights, whatever else is in the batch and however it is run."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from pixel_sail.architecture import Architecture
from pixel_sail.data.encode import image_positions
from pixel_sail.data.pack import pack
from pixel_sail.data.runs import join_masks
from pixel_sail.model.configuration import PixelSailConfig
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.modality_experts import Modality, Pair, Route
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.tokens import SpecialTokens, add_special_tokens
from pixel_sail.types import IGNORE_LABEL, UNPROMPTED, Encoded, ImageBlock
from pixel_sail.weights.convert.scratch import train_tokenizer

TOKENIZER = train_tokenizer(["the red mug", "the ball on the table"] * 3, 290)
add_special_tokens(TOKENIZER)
TOKENS = SpecialTokens.of(TOKENIZER)


@pytest.fixture
def model() -> PixelSail:
    torch.manual_seed(0)
    text = Qwen2Config(vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    config = PixelSailConfig(text, Architecture(patch_size=8, mask_dim=8, vision_experts=True),
                             prompt_token_ids=list(TOKENS.prompts))  # fmt: skip
    model = PixelSail(config)
    for parameter in model.language_model.parameters():  # so that twins, norms and biases all differ
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def sequence(text: list[int], grid_hw: tuple[int, int] = (0, 0), labels: bool = True) -> Encoded:
    h, w = grid_hw
    image = [TOKENS.vision_start, *[TOKENS.vision_patch] * (h * w), TOKENS.vision_end] if h else []
    ids = torch.tensor([*image, *text])
    marked = torch.full_like(ids, IGNORE_LABEL)
    marked[len(image) + 1 :] = ids[len(image) + 1 :] if labels else IGNORE_LABEL
    positions = image_positions(1, h, w, len(text) + 1) if h else torch.arange(len(text)).expand(3, -1)
    patches = torch.randn(h * w, 192, generator=torch.Generator().manual_seed(h))
    images = (ImageBlock((0, len(image)), grid_hw, join_masks([], (0, 0)), ()),) if h else ()
    return Encoded("one", 0, ids, marked, positions, patches, torch.full((h * w,), UNPROMPTED), images)


def batch_of(*sequences: Encoded):
    return pack(sequences, TOKENS.seg, TOKENS.vision_patch)


def test_each_token_takes_its_own_twin() -> None:
    route, width = Route(), 5
    pair = Pair(torch.nn.Linear(width, 3), route)
    torch.nn.init.normal_(pair.vision.weight)
    x, visual = torch.randn(1, 7, width), [False, True, True, False, False, True, False]
    assert torch.equal(pair(x), pair.text(x))
    route.modality = Modality.of([(0, 1, 3, 4), (4, 5, 6, 7)], x.device)
    wanted = torch.stack(
        [(pair.vision if kind else pair.text)(token) for kind, token in zip(visual, x[0], strict=True)]
    )
    torch.testing.assert_close(pair(x)[0], wanted)


def test_packed_and_alone(model: PixelSail) -> None:
    parts = [sequence([5, 6, 7, 8], (2, 3)), sequence([9, 10, 11]), sequence([12, 13], (1, 2))]
    packed = model(batch_of(*parts)).hidden
    alone = torch.cat([model(batch_of(part)).hidden for part in parts])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_text_knows_nothing_of_the_twins(model: PixelSail) -> None:
    batch = batch_of(sequence([5, 6, 7, 8]))
    before = model(batch).logits
    for name, parameter in model.named_parameters():
        if ".vision." in name:
            torch.nn.init.zeros_(parameter)
    assert torch.equal(model(batch).logits, before)


def test_every_weight_has_a_gradient_even_without_an_image(model: PixelSail) -> None:
    """Ranks of a distributed run must use the same weights, whatever their samples are."""
    model(batch_of(sequence([5, 6, 7, 8]))).logits.square().sum().backward()
    layers = "language_model.model.layers"
    twins = {name: weight.grad for name, weight in model.named_parameters() if name.startswith(layers)}
    assert all(gradient is not None for gradient in twins.values())
    assert all((gradient == 0).all() == (".vision." in name) for name, gradient in twins.items())


def test_a_layer_run_again_in_backward_routes_as_its_own_batch(model: PixelSail) -> None:
    """Activation checkpointing, with another batch in between."""
    first, other = batch_of(sequence([5, 6, 7, 8], (2, 3))), batch_of(sequence([9, 10, 11]))
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(first).logits.square().sum()
        model(other)
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.language_model.model.layers.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_cached_generation_says_what_a_whole_pass_says(model: PixelSail) -> None:
    prefix, question = sequence([], (2, 3), labels=False), [5, 6, 7]
    sampling = Sampling(max_new_tokens=6)
    answers = generate(
        model,
        batch_of(prefix),
        [GenerationRequest(question, 0), GenerationRequest(question, None)],
        TOKENS.seg,
        (),
        sampling,
    )
    for answer, grid in zip(answers, ((2, 3), (0, 0)), strict=True):
        batch = batch_of(sequence([*question, *answer.token_ids], grid))
        assert model(batch).logits[len(question) - 1 :].argmax(-1).tolist() == answer.token_ids
    assert answers[0].token_ids != answers[1].token_ids


def test_save_and_load(model: PixelSail, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    loaded = PixelSail.from_pretrained(tmp_path)
    batch = batch_of(sequence([5, 6, 7, 8], (2, 3)))
    assert torch.equal(loaded(batch).hidden, model(batch).hidden)


def test_only_qwen2_has_twins() -> None:
    text = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ValueError, match="vision experts are EVEv2's, in Qwen2 decoders; this is a LlamaForCausalLM"):
        PixelSail(PixelSailConfig(text, Architecture(mask_dim=8, vision_experts=True)))
