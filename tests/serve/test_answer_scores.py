"""Scores, presence and soft masks of answers: those of training's own forward pass; without a head there are none."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_predictor import force_answer
from tiny_predictor import tiny_predictor, tiny_scoring_predictor

from pixel_sail.commands.work import predict
from pixel_sail.commands.work.predict import write
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.errors import UserError
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import Sample, Turn


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_scoring_predictor()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_an_answer_has_the_scores_of_training(predictor: Predictor, image: Image.Image, tmp_path) -> None:
    """The same questions, answered in a batch of generation, and as a training sample each."""
    image.save(tmp_path / "a.png")
    encoder, mask = predictor.encoder, encode_mask(np.ones((50, 70), dtype=bool))
    turns = [("Segment the mug.", "It is [SEG] or [SEG]"), ("Segment the large red ball.", "[SEG]"), ("Hm?", "no")]
    prefix = pack([encoder.image_prefix(image, {}, "x")], encoder.tokens.seg, encoder.tokens.vision_patch)
    requests = [
        GenerationRequest(encoder.question_ids(asked), 0, tuple(encoder.text_ids(encoder.chat.answer(answer))))
        for asked, answer in turns
    ]
    seg, stops = encoder.tokens.seg, tuple(range(encoder.tokenizer.vocab_size + 30))
    generated = generate(predictor.model, prefix, requests, seg, stops, Sampling(1))
    for (asked, answer), one in zip(turns, generated, strict=True):
        segs = answer.count("[SEG]")
        sample = Sample("a", tmp_path / "a.png", (Turn(asked, answer),), (mask,) * segs)
        with torch.no_grad():
            output = predictor.model(pack([encoder.encode(sample)], seg, encoder.tokens.vision_patch))
        presence = output.presence_logits.sigmoid()
        assert one.presence == pytest.approx(presence.item(), abs=1e-5) and len(one.scores) == segs
        assert one.scores == pytest.approx((output.score_logits.sigmoid() * presence).tolist(), abs=1e-5)
    assert len({round(one.presence, 4) for one in generated}) == 3


def test_soft_masks_are_the_masks_before_the_threshold(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
    for answer in predictor.segment(image, ["mug", "ball"], soft=True):
        (mask,), (probabilities,) = answer.masks, answer.probabilities
        assert probabilities.shape == (50, 70) and probabilities.dtype == np.float32
        assert np.array_equal(mask, probabilities > 0.5)
        assert 0 < answer.scores[0] < answer.presence < 1
    assert predictor.segment(image, "mug")[0].probabilities is None


def test_what_is_probably_not_there_has_an_empty_mask(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    def segment(least: float | None) -> Answer:
        answering = copy(predictor)
        answering.set_min_presence(least)
        force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
        return answering.segment(image, "mug", soft=True)[0]

    usual = segment(None)
    presence = usual.presence
    assert usual.masks[0].any() and 0.01 < presence < 0.99
    assert segment(presence - 0.001).masks[0].any()
    rejected = segment(presence + 0.001)
    assert (rejected.text, len(rejected.masks), rejected.masks[0].any()) == ("[SEG]", 1, False)
    assert (rejected.scores, rejected.presence) == (usual.scores, presence)
    assert np.array_equal(rejected.probabilities[0], usual.probabilities[0])
    with pytest.raises(UserError, match="gives no presence"):
        tiny_predictor().set_min_presence(0.5)
    with pytest.raises(UserError, match="min_presence is 0.5, in the call or in the model's generation_config.json"):
        tiny_predictor().chat(image, "What is it?", sampling=Sampling(min_presence=0.5))
    with pytest.raises(ValueError, match="0 <= min_presence <= 1"):
        Sampling(min_presence=1.5)


def test_words_have_a_presence_and_nothing_else(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    force_answer([predictor.encoder.end_ids[0]], monkeypatch)
    (answer,) = predictor.chat(image, "what is it?", soft=True)
    assert (answer.masks, answer.scores, answer.probabilities) == ([], [], []) and 0 < answer.presence < 1
    (undrawn,) = predictor.chat(image, "what is <Prompt3>?")
    assert (undrawn.scores, undrawn.presence) == (None, None)
    assert predictor.chat(None, "hello?")[0].presence is not None


def test_a_model_without_a_head_answers_as_before(image: Image.Image, monkeypatch) -> None:
    bare, scored = tiny_predictor(), tiny_predictor(architecture={"mask_scores": True})
    answers = []
    for predictor in (bare, scored):
        monkeypatch.undo()
        force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
        answers.append(predictor.segment(image, ["mug"], soft=True)[0])
    assert (answers[0].scores, answers[0].presence) == (None, None) and answers[1].scores
    assert np.array_equal(answers[0].probabilities[0], answers[1].probabilities[0])


def test_predict_writes_scores_and_gray_images(predictor: Predictor, image: Image.Image, tmp_path, monkeypatch) -> None:
    force_answer([predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]], monkeypatch)
    (answer,) = predictor.segment(image, "mug", soft=True)
    write(tmp_path, "a", Path("a.jpg"), image, ["mug"], [answer], [])
    (record,) = json.loads((tmp_path / "a.json").read_text())["answers"]
    assert (record["presence"], record["scores"], record["masks"]) == (answer.presence, answer.scores, ["a_0_0.png"])
    gray = np.asarray(Image.open(tmp_path / "a_0_0_soft.png")) / 255
    np.testing.assert_allclose(gray, answer.probabilities[0], atol=0.51 / 255)


def test_predict_says_that_nothing_was_found(image: Image.Image, tmp_path: Path, monkeypatch) -> None:
    """A mask without a pixel is said in words, on the console and under the picture; one with a pixel is not."""
    captions: list[str] = []
    monkeypatch.setattr(predict, "draw_answers", lambda image, _, said, __: captions.extend(said) or image)
    empty, full = np.zeros((50, 70), dtype=bool), np.ones((50, 70), dtype=bool)
    answers = [Answer("[SEG]", [empty]), Answer("[SEG]", [empty, full]), Answer("no", [])]
    write(tmp_path, "a", Path("a.jpg"), image, ["mug", "key", "what"], answers, [])
    assert captions == ["mug: [SEG] (nothing found)", "key: [SEG]", "what: no"]
