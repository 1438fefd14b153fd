"""Pooled regions, the plain baseline: the mean of a region's own patches at its name, packed and from the KV cache."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pixel_sail.architecture import Architecture
from pixel_sail.config import ModelSection, ScratchConfig
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Box
from pixel_sail.data.runs import join_masks
from pixel_sail.model.generation import GenerationRequest, Sampling, _Decoding, _Row, generate, read_images
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.model.pixels import normalize
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.types import IGNORE_LABEL, RLE, Batch, Encoded, Sample, Turn
from pixel_sail.weights.convert.scratch import from_scratch

TEXTS = ["Is <Prompt0> left of <Prompt1>?", "It is [SEG]."] * 3


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    scratch = ScratchConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, mlp_size=64, vocab_size=400)
    architecture = Architecture(patch_size=8, mask_stride=8, mask_dim=16, max_side_px=64, region_embedding="pooled")
    model, tokenizer = from_scratch(ModelSection(scratch=scratch), architecture, TEXTS, "Segment {expression}.")
    return Predictor(model.eval(), tokenizer)


def draw_image(seed: int, size_wh: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def region(x0: int, y0: int, x1: int, y1: int, size_wh: tuple[int, int] = (64, 48)) -> RLE:
    mask = np.zeros(size_wh[::-1], dtype=bool)
    mask[y0:y1, x0:x1] = True
    return encode_mask(mask)


def sample(image: Image.Image, prompts: dict[int, RLE], question: str = "Is <Prompt0> left of <Prompt3>?") -> Sample:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Sample(
        "one", file.getvalue(), (Turn(question, "<Prompt3> is not, it is [SEG]."),), (region(0, 0, 9, 9),), prompts
    )


def packed(predictor: Predictor, *samples: Sample) -> Batch:
    tokens = predictor.encoder.tokens
    return pack([predictor.encoder.encode(item) for item in samples], tokens.seg, tokens.vision_patch)


TWO = {0: region(0, 0, 16, 8), 3: region(40, 16, 64, 48)}  # 2 patches; 3 x 4 patches


def test_a_name_gets_the_mean_of_its_own_patches_and_nothing_else_changes(predictor: Predictor) -> None:
    model = predictor.model
    plain, drawn = (packed(predictor, sample(draw_image(0), prompts)) for prompts in ({}, TWO))
    patches = model.fusion.patch_linear(normalize(drawn.patches)).view(6, 8, 32)
    means = {0: patches[0, :2].mean(0), 3: patches[2:6, 5:8].mean((0, 1))}
    difference = model.embed(drawn) - model.embed(plain)
    for k, mean in means.items():
        names = (drawn.input_ids == predictor.encoder.tokens.prompts[k]).nonzero()[:, 0]
        assert len(names) == (1 if k == 0 else 2)  # in the question; <Prompt3> also in the answer
        torch.testing.assert_close(difference[names], mean.expand(len(names), -1))
        difference[names] = 0
    assert not difference.any()


def test_only_its_patches_reach_a_name(predictor: Predictor) -> None:
    batch = packed(predictor, sample(draw_image(0), TWO))
    pixels = normalize(batch.patches).requires_grad_()
    place = int((batch.input_ids == predictor.encoder.tokens.prompts[0]).nonzero()[0])
    predictor.model.embed(replace(batch, patches=pixels))[place].sum().backward()
    assert pixels.grad.abs().sum(1).nonzero()[:, 0].tolist() == [0, 1]


def test_packed_sequences_keep_their_own_regions(predictor: Predictor) -> None:
    """The same names for other regions, an image without prompts, and a text alone."""
    samples = [
        sample(draw_image(0), TWO),
        Sample("text", None, (Turn("What is <Prompt0>?", "Nothing."),)),
        sample(draw_image(1), {}),
        sample(draw_image(2, (32, 48)), {0: region(0, 8, 32, 32, (32, 48)), 3: region(8, 40, 9, 41, (32, 48))}),
    ]
    samples[3] = replace(samples[3], masks=(region(0, 0, 9, 9, (32, 48)),))
    together = packed(predictor, *samples)
    output = predictor.model(together)
    states = output.hidden.split([stop - start for start, _, _, stop in together.spans])
    for i, item in enumerate(samples):
        alone = predictor.model(packed(predictor, item))
        torch.testing.assert_close(states[i], alone.hidden, atol=2e-5, rtol=1e-4)
        if item.masks:
            torch.testing.assert_close(output.mask_logits[i], alone.mask_logits[0], atol=2e-5, rtol=1e-4)


def test_generation_from_the_cache_is_the_whole_forward_pass(predictor: Predictor, monkeypatch) -> None:
    """Names in the question, in the begun answer and in new tokens; two chats give the same name to other regions."""
    model, tokens = predictor.model, predictor.encoder.tokens
    new = [tokens.prompts[0], tokens.seg, tokens.prompts[3], tokens.seg, predictor.encoder.end_ids[0]]
    steps = iter(new)
    monkeypatch.setattr("pixel_sail.model.generation._choose", lambda logits, _: [next(steps)] * len(logits))
    question = predictor.encoder.question_ids("Is <Prompt0> left of <Prompt3>?")
    begun = (tokens.prompts[3], tokens.seg)
    chats = [prefix(predictor, TWO), prefix(predictor, {0: region(48, 40, 64, 48)})]
    asked = [GenerationRequest(question, 0, begun), GenerationRequest(question[2:], 1, begun)]
    answers = generate(model, pack(chats, tokens.seg, tokens.vision_patch), asked, tokens.seg, (new[-1],), Sampling(9))
    for image, row, answer in zip(chats, asked, answers, strict=True):
        assert answer.token_ids == [*begun, *new[:-1]]
        expected = model(whole(predictor, image, row.question_ids, answer.token_ids)).mask_logits[0]
        assert expected.shape == (3, 6, 8)
        torch.testing.assert_close(answer.mask_logits, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(answers[0].mask_logits, answers[1].mask_logits, atol=1e-2)


@torch.inference_mode()
def test_a_question_without_an_image_gets_no_region_of_its_neighbour(predictor: Predictor) -> None:
    tokens, model = predictor.encoder.tokens, predictor.model
    images = read_images(model, pack([prefix(predictor, TWO)], tokens.seg, tokens.vision_patch))
    question = predictor.encoder.question_ids("What is <Prompt0>?")
    rows = [_Row.of(GenerationRequest(question, image), images) for image in (0, None)]
    together = _Decoding(model, rows, tokens.seg).read()
    alone = _Decoding(model, [_Row.of(GenerationRequest(question, None), [])], tokens.seg).read()
    torch.testing.assert_close(together[1:], alone, atol=2e-5, rtol=1e-4)


def prefix(predictor: Predictor, prompts: dict[int, RLE]) -> Encoded:
    return predictor.encoder.image_prefix(draw_image(0), prompts, "x")


def whole(predictor: Predictor, image: Encoded, question: list[int], answer: list[int]) -> Batch:
    """Image, question and answer as one sequence."""
    start, text = int(image.position_ids.max()) + 1, torch.tensor([*question, *answer])
    tokens = predictor.encoder.tokens
    masks = join_masks([np.array([48 * 64])] * answer.count(tokens.seg), (48, 64))
    sequence = replace(
        image,
        input_ids=torch.cat([image.input_ids, text]),
        labels=torch.cat([torch.full((len(image) + len(question),), IGNORE_LABEL), torch.tensor(answer)]),
        position_ids=torch.cat([image.position_ids, torch.arange(start, start + len(text)).expand(3, -1)], dim=1),
        images=(replace(image.images[0], masks=masks, segs=tuple(range(len(masks)))),),
    )
    return pack([sequence], tokens.seg, tokens.vision_patch)


def test_chats_draw_their_own_regions_and_the_region_is_heard(predictor: Predictor) -> None:
    image, sampling = draw_image(0), Sampling(max_new_tokens=8)
    chats = [
        Chat(image, ["what is <Prompt0>?", "and is <Prompt0> red?"], [Box(0, 0, 15, 7)]),
        Chat(image, ["what is <Prompt0>?"], [Box(40, 20, 60, 45)]),
        Chat(image, ["what?"]),
        Chat(None, ["what?"]),
    ]
    for chat, answers in zip(chats, predictor.chat_many(chats, sampling), strict=True):
        for question, answer in zip(chat.questions, answers, strict=True):
            (alone,) = predictor.chat(chat.image, question, chat.regions, sampling)
            assert alone.text == answer.text and len(alone.masks) == len(answer.masks)


def test_the_choice_is_saved_and_an_old_checkpoint_is_fused(predictor: Predictor, tmp_path) -> None:
    predictor.model.save_pretrained(tmp_path)
    again = PixelSail.from_pretrained(tmp_path)
    assert again.config.architecture.region_embedding == "pooled" and again.fusion.prompt_linear is None
    batch = packed(predictor, sample(draw_image(0), TWO))
    assert torch.equal(again(batch).hidden, predictor.model(batch).hidden)
    text = (tmp_path / "config.json").read_text().replace('"region_embedding": "pooled",', "")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="missing fusion.prompt_linear.weight"):
        PixelSail.from_pretrained(tmp_path)
