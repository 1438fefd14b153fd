"""The Python API on a tiny model: one encoding of the image, masks at its size, limits that lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_predictor import tiny_predictor

from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Box, Points
from pixel_sail.errors import UserError
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.serve.predictor import MAX_ROWS, Chat, Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def force_answer(ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model answer `ids` to every question; hidden states and masks stay its own."""
    steps: list[int] = []

    def choose(logits: torch.Tensor, sampling: Sampling) -> list[int]:
        steps.append(0)
        return [ids[min(len(steps), len(ids)) - 1]] * logits.shape[0]

    monkeypatch.setattr("pixel_sail.model.generation._choose", choose)


def test_many_expressions_one_encoding(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    seg, stop = predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]
    force_answer([seg, stop], monkeypatch)
    before = predictor.images_encoded
    answers = predictor.segment(image, [f"mug {i}" for i in range(10)])
    assert predictor.images_encoded == before + 1
    assert [a.text for a in answers] == ["[SEG]"] * 10
    assert all(a.masks[0].shape == (50, 70) and a.masks[0].dtype == bool for a in answers)


def test_many_rows_answer_as_single_ones(predictor: Predictor, image: Image.Image) -> None:
    prefix = pack([predictor.encoder.image_prefix(image, {}, "x")], *_ids(predictor))
    start = predictor.encoder.text_ids("it is [SEG] or [SEG]")
    questions = [predictor.encoder.question_ids("Segment the " + "red " * i + "mug.") for i in range(MAX_ROWS + 3)]

    def answer(rows: list[list[int]]) -> list:
        seg = predictor.encoder.tokens.seg
        requests = [GenerationRequest(question, 0, tuple(start)) for question in rows]
        return generate(predictor.model, prefix, requests, seg, (), Sampling(6), max_rows=MAX_ROWS)

    together = answer(questions)
    for question, expected in list(zip(questions, together, strict=True))[::7]:
        (alone,) = answer([question])
        assert alone.token_ids == expected.token_ids
        torch.testing.assert_close(alone.mask_logits, expected.mask_logits, atol=1e-5, rtol=1e-5)


def test_the_limit_never_loses_the_last_mask(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    seg = predictor.encoder.tokens.seg
    force_answer([seg], monkeypatch)
    for limit in (1, 2, 3):
        (answer,) = predictor.chat(image, "what?", sampling=Sampling(max_new_tokens=limit))
        assert answer.text == "[SEG]" * limit and len(answer.masks) == limit


def test_a_seg_in_the_question_is_not_an_answer(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    force_answer([predictor.encoder.end_ids[0]], monkeypatch)
    (answer,) = predictor.chat(image, "is [SEG] a word?")
    assert answer.text == "" and answer.masks == []


def test_no_image(predictor: Predictor, monkeypatch) -> None:
    force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
    before = predictor.images_encoded
    (answer,) = predictor.chat(None, "hello?")
    assert answer.text == "[SEG]" and answer.masks == [] and predictor.images_encoded == before


def test_a_photo_is_turned_as_its_exif_says(predictor: Predictor, tmp_path, monkeypatch) -> None:
    force_answer([predictor.encoder.tokens.seg], monkeypatch)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side, to be turned by a quarter
    Image.new("RGB", (70, 50)).save(tmp_path / "photo.jpg", exif=exif)
    assert predictor.segment(tmp_path / "photo.jpg", "mug")[0].masks[0].shape == (70, 50)
    assert predictor.segment(Image.new("RGB", (70, 50)), "mug")[0].masks[0].shape == (50, 70)


def test_prompts_reach_the_model(predictor: Predictor, image: Image.Image) -> None:
    def state(prompts: dict[int, np.ndarray]) -> torch.Tensor:
        from pixel_sail.data.masks import encode_mask

        regions = {k: encode_mask(region) for k, region in prompts.items()}
        prefix = pack([predictor.encoder.image_prefix(image, regions, "x")], *_ids(predictor))
        return predictor.model.embed(prefix)

    left = np.zeros((50, 70), dtype=bool)
    left[:, :8] = True
    plain, first, second = state({}), state({0: left}), state({1: left})
    changed = (plain != first).any(1)
    assert 0 < changed.sum() < len(plain) and not torch.equal(first, second)


def test_a_phrase_that_names_no_region_is_asked_without_them(predictor: Predictor, image: Image.Image, monkeypatch):
    def probabilities(ask, *asked) -> list[np.ndarray]:
        force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
        return [answer.probabilities[0] for answer in ask(image, *asked, soft=True)]

    phrases, regions = ["the mug", "the mug on <Prompt0>", "the ball"], [Box(3, 3, 60, 45)]
    mug, mug_on, ball = probabilities(predictor.segment, phrases, regions)
    for found, asked in ((mug, ("the mug",)), (mug_on, ("the mug on <Prompt0>", regions)), (ball, ("the ball",))):
        np.testing.assert_allclose(found, probabilities(predictor.segment, *asked)[0], atol=1e-5)
    assert np.abs(mug - probabilities(predictor.chat, "the mug", regions)[0]).max() > 1e-3  # a question is about all
    with pytest.raises(UserError, match="a box is"):
        predictor.segment(image, "the mug", [Box(60, 3, 3, 45)])


def test_batched_chats_answer_as_single_ones(predictor: Predictor, image: Image.Image) -> None:
    """Images of different sizes, with and without regions, and no image, all in one batch."""
    other = image.resize((30, 90))
    chats = [
        Chat(image, ["what is this?", "segment the red mug, please"], [Box(3, 3, 20, 20)]),
        Chat(None, ["is a mug red or blue?"]),
        Chat(other, ["what?"]),
        Chat(image, ["what is this?", "the ball?"], [Box(40, 20, 60, 45)]),
    ]
    sampling = Sampling(max_new_tokens=12)
    together = predictor.chat_many(chats, sampling)
    for chat, answers in zip(chats, together, strict=True):
        for question, answer in zip(chat.questions, answers, strict=True):
            (alone,) = predictor.chat(chat.image, question, chat.regions, sampling)
            assert alone.text == answer.text and len(alone.masks) == len(answer.masks)
            assert all(np.array_equal(a, b) for a, b in zip(alone.masks, answer.masks, strict=True))


def test_batched_masks_equal_single_ones(predictor: Predictor, image: Image.Image) -> None:
    tokens, encoder = predictor.encoder.tokens, predictor.encoder
    images = [image, image.resize((30, 90)), image.rotate(180)]
    prefixes = [encoder.image_prefix(image, {}, "x") for image in images]
    start = tuple(encoder.text_ids("it is [SEG] or [SEG]"))
    requests = [GenerationRequest(encoder.question_ids("what" + " red" * i + "?"), i % 3, start) for i in range(7)]
    together = generate(predictor.model, pack(prefixes, *_ids(predictor)), requests, tokens.seg, (), Sampling(4))
    for row, expected in zip(requests, together, strict=True):
        prefix = pack([prefixes[row.image]], *_ids(predictor))
        (alone,) = generate(
            predictor.model, prefix, [GenerationRequest(row.question_ids, 0, start)], tokens.seg, (), Sampling(4)
        )
        assert alone.token_ids == expected.token_ids and alone.mask_logits.shape[0] >= 2
        torch.testing.assert_close(alone.mask_logits, expected.mask_logits, atol=1e-5, rtol=1e-5)


def test_stop_strings_end_an_answer_with_its_masks(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    ids = predictor.encoder.text_ids("a [SEG] red mug [SEG]")
    force_answer(ids, monkeypatch)
    (answer,) = predictor.chat(image, "?", sampling=Sampling(max_new_tokens=20, stop_strings=("mug",)))
    assert answer.text == "a [SEG] red " and len(answer.masks) == 1


def test_sampling_follows_its_generator(predictor: Predictor, image: Image.Image) -> None:
    def texts(seed: int) -> list[str]:
        sampling = Sampling(8, temperature=3.0, generator=torch.Generator().manual_seed(seed))
        return [answer.text for answer in predictor.chat(image, ["what?", "who?"], sampling=sampling)]

    assert texts(1) == texts(1) != texts(2)


def test_a_region_that_nobody_drew_is_not_in_the_image(predictor: Predictor, image: Image.Image) -> None:
    before = predictor.images_encoded
    answers = predictor.chat(image, ["What is <Prompt3>?", "Is <Prompt0> or <Prompt4> red?"], [Box(1, 1, 9, 9)])
    assert [a.text for a in answers] == ["<Prompt3> is not in the image.", "<Prompt4> is not in the image."]
    assert [a.masks for a in answers] == [[], []] and predictor.images_encoded == before + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, i: p.segment(i, ""), "the expression is empty"),
        (lambda p, i: p.chat(i, ["fine", " "]), "there is an empty question"),
        (lambda p, i: p.chat(i, "a <vpatch> b"), "the text contains <vpatch>"),
        (lambda p, i: p.chat(i, "?", {0: np.zeros((50, 70), bool)}), "the region of <Prompt0> is empty"),
        (lambda p, i: p.chat(i, "?", {15: np.ones((50, 70), bool)}), "there is no <Prompt15>"),
        (
            lambda p, i: p.chat(i, "?", {0: np.ones((5, 7), bool)}),
            "the region of <Prompt0> is [5, 7], the image [50, 70]",
        ),
        (lambda p, i: p.chat("/nowhere.jpg", "?"), "no image file /nowhere.jpg"),
        (lambda p, i: p.chat(None, "?", [Box(0, 0, 2, 2)]), "1 regions are drawn, but there is no image"),
        (
            lambda p, i: p.chat(i, "?", [Points(((9, 9),)), Points(((10, 10),))]),
            "the region of <Prompt1> cannot be seen: other regions cover every patch",
        ),
        (lambda p, i: p.chat(i, "?", sampling=Sampling(0)), "max_new_tokens >= 1"),
    ],
)
def test_bad_questions_say_why(predictor: Predictor, image: Image.Image, call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(predictor, image)
    assert message in str(error.value)


def _ids(predictor: Predictor) -> tuple[int, int]:
    return predictor.encoder.tokens.seg, predictor.encoder.tokens.vision_patch
