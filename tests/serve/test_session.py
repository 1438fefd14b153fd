"""Clicks on a mask: a session that reads the image once is training's forward pass over the whole conversation."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_predictor import force_answer
from tiny_predictor import tiny_predictor

from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.data.regions import Box
from pixel_sail.errors import UserError
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.session import Session
from pixel_sail.tokens import CLICK, SpecialTokens
from pixel_sail.types import BadSample, Click, Clicks, Encoded, Sample, Turn

CLICKS = [(3, 4, True), (69.5, 49.9, False)], [(30, 20, True)]


def with_random_clicks(**architecture) -> Predictor:
    predictor = tiny_predictor(architecture={"clicks": True, **architecture})
    predictor.sampling = Sampling(8)  # tokens of an answer
    torch.manual_seed(1)
    torch.nn.init.normal_(predictor.model.fusion.clicks.weight)
    return predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return with_random_clicks()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"image_positions": "sequence", "row_ends": True},
        {"region_embedding": "pooled", "image_attention": "causal"},
    ],
    ids=str,
)
def test_refining_is_the_forward_pass_of_training(
    architecture: dict, image: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two turns of clicks behind a phrase, against one sequence without a cache."""
    predictor = with_random_clicks(**architecture)
    encoder = predictor.encoder
    image.save(tmp_path / "a.png")
    force_answer([encoder.tokens.seg, encoder.end_ids[0]], monkeypatch)
    session = Session(predictor, image)
    answers = [session.segment("mug", soft=True), *(session.refine(clicks, soft=True) for clicks in CLICKS)]
    turns = (
        Turn(predictor.segment_questions(["mug"])[0], "[SEG]"),
        *(Turn(CLICK * len(clicks), "[SEG]", tuple(Click(*click) for click in clicks)) for clicks in CLICKS),
    )
    assert session.turns == turns
    sample = Sample("a", tmp_path / "a.png", turns, (encode_mask(np.ones((50, 70), dtype=bool)),) * 3)
    batch = pack([encoder.encode(sample)], encoder.tokens.seg, encoder.tokens.vision_patch)
    with torch.no_grad():
        logits = predictor.model(batch).mask_logits[0]
    expected = F.interpolate(logits[None], (50, 70), mode="bilinear", align_corners=False)[0].sigmoid().numpy()
    for answer, probabilities in zip(answers, expected, strict=True):
        assert answer.text == "[SEG]" and len(answer.masks) == 1
        np.testing.assert_allclose(answer.probabilities[0], probabilities, atol=1e-5)
    assert np.abs(expected[1:] - expected[:-1]).mean((1, 2)).min() > 1e-3  # each turn changes the mask


@pytest.mark.parametrize(
    "architecture", [{}, {"image_positions": "sequence", "row_ends": True, "region_embedding": "pooled"}], ids=str
)
def test_clicks_on_one_of_two_images_are_one_forward_pass(
    architecture: dict, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one sequence without a cache, behind another in its batch, with each click placed by hand."""
    predictor = with_random_clicks(**architecture)
    encoder, tokens = predictor.encoder, predictor.encoder.tokens
    images = [image, Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8))]
    clicks = [Click(*click) for of_turn in CLICKS for click in of_turn]
    turns = (
        Turn(predictor.segment_questions(["mug"])[0], "[SEG]"),
        *(Turn(CLICK * len(of_turn), "[SEG]", (Click(0, 0, True),) * len(of_turn)) for of_turn in CLICKS),
    )
    for on, (width, height) in enumerate(one.size for one in images):
        force_answer([tokens.seg, encoder.end_ids[0]], monkeypatch)
        session = Session(predictor, images, masks_on=on)
        answers = [session.segment("mug", soft=True), *(session.refine(of_turn, soft=True) for of_turn in CLICKS)]
        mask = encode_mask(np.ones((height, width), dtype=bool))
        pngs = [png(one) for one in images]
        sample = Sample("a", pngs[0], turns, (mask,) * 3, more_images=(pngs[1],), mask_images=(on,) * 3)
        encoded = encoder.encode(sample)
        placed = placed_by_hand(encoded, clicks, on, (width, height), tokens)
        batch = pack([encoded, placed], tokens.seg, tokens.vision_patch)
        with torch.no_grad():
            logits = predictor.model(batch).mask_logits[2 + on]
        expected = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0].sigmoid()
        for answer, probabilities in zip(answers, expected.numpy(), strict=True):
            np.testing.assert_allclose(answer.probabilities[0], probabilities, atol=1e-5)
        assert (expected[1:] - expected[:-1]).abs().mean((1, 2)).min() > 1e-3  # each turn changes the mask
    with pytest.raises(UserError, match="masks_on is 2, and there are 2 images: they are counted from 0"):
        Session(predictor, images, masks_on=2)
    with pytest.raises(UserError, match="there is no image to click on"):
        Session(predictor, None)


def placed_by_hand(
    encoded: Encoded, clicks: list[Click], on: int, size_wh: tuple[int, int], tokens: SpecialTokens
) -> Encoded:
    """The sequence with its clicks on the image `on`, one after the other."""
    ids, positions = encoded.input_ids.tolist(), encoded.position_ids.clone()
    patches = [place for place, token in enumerate(ids) if token == tokens.vision_patch]  # of both images
    of_click = [place for place, token in enumerate(ids) if token == tokens.click]
    first = [0, encoded.images[0].grid_hw[0] * encoded.images[0].grid_hw[1]][on]
    h, w = encoded.images[on].grid_hw
    numbers, values = [], []
    for place, click in zip(of_click, clicks, strict=True):
        x, y = (int(click.x) + 0.5) * w / size_wh[0], (int(click.y) + 0.5) * h / size_wh[1]
        numbers.append(first + int(y) * w + int(x))
        values.append([click.positive, not click.positive, 2 * (x - int(x)) - 1, 2 * (y - int(y)) - 1])
        positions[:, place] = positions[:, patches[numbers[-1]]]
    placed = Clicks(torch.tensor(of_click), torch.tensor(numbers), torch.tensor(values, dtype=torch.float32))
    return replace(encoded, position_ids=positions, clicks=placed)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_image_is_read_once(predictor: Predictor, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that go through the decoder: those of the image at the start, then those of the text alone."""
    force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
    read: list[int] = []
    decoder = predictor.model.language_model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    before = predictor.images_encoded
    session = Session(predictor, image)
    h, w = session.blocks[0].grid_hw
    assert read == [predictor.model.config.architecture.image_tokens(h, w)]
    session.segment("mug")
    for clicks in CLICKS:
        read.clear()
        session.refine(clicks)
        *history, last = session.turns
        pairs = [(turn.question, turn.answer) for turn in history]
        assert read == [len(predictor.encoder.question_ids(last.question, pairs)) + 1]  # and its [SEG]
    hook.remove()
    assert predictor.images_encoded == before + 1


def test_a_phrase_in_a_session_is_answered_as_ever(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    session, answers = Session(predictor, image), []
    for number in range(3):
        force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
        answers.append(session.segment("mug") if number else predictor.segment(image, "mug")[0])
        session.refine(CLICKS[0])
    for answer in answers:
        assert answer.text == "[SEG]" and np.array_equal(answer.masks[0], answers[0].masks[0])
    session.undo()
    assert [turn.clicks for turn in session.turns] == [()]


def test_a_phrase_that_names_no_region_is_about_the_image_without_them(
    predictor: Predictor, image: Image.Image, monkeypatch
) -> None:
    def soft(session: Session, phrase: str) -> list[np.ndarray]:
        force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
        return [session.segment(phrase, True).probabilities[0], session.refine(CLICKS[0], True).probabilities[0]]

    before, regions = predictor.images_encoded, [Box(3, 3, 60, 45)]
    session, plain = Session(predictor, image, regions), Session(predictor, image)
    for _ in range(2):
        about, other = soft(session, "the mug on <region>"), soft(session, "the mug")
        for found, expected in zip(other, soft(plain, "the mug"), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        alone = soft(Session(predictor, image, regions), "the mug on <Prompt0>")
        for found, expected in zip(about, alone, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(about, other, strict=True))
    assert predictor.images_encoded == before + 2 + 1 + 2  # with regions and without; plain; two for comparison


def test_undo_takes_the_last_clicks_back(predictor: Predictor, image: Image.Image) -> None:
    session = Session(predictor, image)
    first = session.refine(CLICKS[0])  # clicks alone
    session.refine(CLICKS[1])
    session.undo()
    assert len(session.turns) == 1
    session.undo()
    session.undo()
    np.testing.assert_array_equal(session.refine(CLICKS[0]).masks[0], first.masks[0])


def test_several_conversations_at_once_are_those_alone(predictor: Predictor, image: Image.Image) -> None:
    session = Session(predictor, image)
    one, two = (session.click_turn(clicks) for clicks in CLICKS)
    conversations = [(one,), (two,), (replace(one, answer="[SEG]"), two)]
    together = session.answers(conversations, soft=True)
    for conversation, answer in zip(conversations, together, strict=True):
        (alone,) = session.answers([conversation], soft=True)
        np.testing.assert_allclose(answer.probabilities[0], alone.probabilities[0], atol=1e-5)


@pytest.mark.parametrize("click", [(70, 10, True), (3, 50, False), (-0.1, 3, True), (float("nan"), 3, True)], ids=str)
def test_clicks_outside_are_refused(click: tuple[float, float, bool], predictor: Predictor, image: Image.Image) -> None:
    session = Session(predictor, image)
    with pytest.raises(BadSample, match="is outside the image of 70 x 50 pixels"):
        session.refine([click])
    assert session.turns == ()


def test_what_cannot_be_refined(predictor: Predictor, image: Image.Image) -> None:
    with pytest.raises(UserError, match="this model takes no clicks; .*clicks_alone"):
        Session(tiny_predictor(), image).refine([(3, 3, True)])
    session = Session(predictor, image)
    with pytest.raises(UserError, match="0 new clicks"):
        session.refine([])
    with pytest.raises(UserError, match="101 new clicks: give one at least, and 100"):
        session.refine([(3, 3, True)] * 101)
    with pytest.raises(BadSample, match="1 <NO_Prompt>, which stand for clicks, and there are 0"):
        session.segment(f"the {CLICK}")
    with pytest.raises(UserError, match="<Prompt2> is named, but no such region is drawn"):
        session.segment("the mug left of <Prompt2>")


def test_what_a_poor_model_says_does_not_stop_a_session(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    """Tokens of images and clicks in an answer, which no text may have."""
    tokens = predictor.encoder.tokens
    force_answer([tokens.vision_patch, tokens.click, tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
    session = Session(predictor, image)
    assert session.segment("mug").text == "<vpatch><NO_Prompt>[SEG]"
    first = session.refine(CLICKS[0]).masks[0]
    session.turns = (replace(session.turns[0], answer="[SEG]"),)
    assert np.array_equal(session.refine(CLICKS[0]).masks[0], first)
