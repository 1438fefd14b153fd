"""Every instance with its own mask and score: one question, many [SEG], and no mask that shows an object again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_predictor import force_answer
from tiny_predictor import tiny_scoring_predictor

from pixel_sail.commands import predict
from pixel_sail.data.templates import QUESTIONS, QUESTIONS_EACH
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.instances import ANSWER_TOKENS, MAX_IOU, distinct
from pixel_sail.serve.predictor import Answer, Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_scoring_predictor()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def _column(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((50, 70), dtype=bool)
    mask[:, start:stop] = True
    return mask


def test_of_masks_that_overlap_the_better_one_stays() -> None:
    nearly = round(10 * MAX_IOU)  # of the ten columns of the first: an IoU of MAX_IOU
    masks = [_column(0, 10), _column(0, nearly), _column(20, 30), _column(0, nearly - 1), _column(20, 30)]
    assert distinct(masks, [0.5, 0.9, 0.5, 0.1, 0.6]) == [1, 4]  # the fourth repeats the second
    assert distinct(masks, [0.9, 0.5, 0.5, 0.1, 0.5]) == [0, 2, 3]  # against the first alone it is another object
    assert distinct(masks, None) == [0, 2, 3]  # in their order
    empty = np.zeros((50, 70), dtype=bool)
    assert distinct([empty, masks[0], empty, masks[2]], [0.9, 0.1, 0.9, 0.2]) == [1, 3]
    assert distinct([empty, empty], [0.1, 0.2]) == [0] and distinct([], []) == []


def test_an_answer_without_repeats_keeps_a_seg_for_each_mask() -> None:
    masks = [_column(0, 10), _column(0, 10), _column(20, 30)]
    answer = Answer("They are [SEG], [SEG] and [SEG].", masks, [0.2, 0.4, 0.9], 0.95, [m.astype(float) for m in masks])
    kept = answer.without_repeats()
    assert kept.text == "They are [SEG] and [SEG]." and kept.scores == [0.4, 0.9] and kept.presence == 0.95
    assert kept.masks == [masks[1], masks[2]] and len(kept.probabilities) == 2
    bare = Answer("[SEG], [SEG] and [SEG]", [masks[0], masks[2], masks[1]]).without_repeats()
    assert (bare.text, len(bare.masks), bare.scores, bare.probabilities) == ("[SEG], [SEG]", 2, None, None)
    single = Answer("It is [SEG] [SEG].", masks[:2]).without_repeats()
    assert (single.text, len(single.masks)) == ("It is [SEG].", 1)
    untouched = Answer("None of it.", [], [], 0.1)
    assert untouched.without_repeats() is untouched


def test_instances_are_asked_for_in_the_words_of_training(
    predictor: Predictor, image: Image.Image, monkeypatch
) -> None:
    asked: list[tuple[list[str], Sampling | None]] = []
    answer = predictor.chat_many

    def chat_many(chats, sampling=None, soft=False):
        asked.append((chats[0].questions, sampling))
        return answer(chats, sampling, soft)

    monkeypatch.setattr(predictor, "chat_many", chat_many)
    seg, stop = predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]
    force_answer([seg] * 100 + [stop], monkeypatch)  # more than an answer has by default
    (several,) = predictor.segment(image, "mug", instances=True)
    assert asked[0][0] == ["Segment each mug."]
    assert asked[0][1].max_new_tokens == ANSWER_TOKENS > 200
    assert several.text.count("[SEG]") == len(several.masks) == len(several.scores) >= 1
    force_answer([seg] * 100 + [stop], monkeypatch)
    (raw,) = predictor.chat(image, asked[0][0], (), predictor.instance_sampling())
    assert len(raw.masks) == 100 and len(several.masks) < 100  # [SEG] after [SEG], whose masks hardly differ
    force_answer([stop], monkeypatch)
    (none,) = predictor.segment(image, "mug", instances=True)
    assert (none.masks, none.scores) == ([], []) and 0 < none.presence < 1
    force_answer([seg, stop], monkeypatch)
    predictor.segment(image, "mug")
    assert asked[-1] == (["Segment mug."], None)  # a plain expression is asked for as before
    monkeypatch.setattr(predictor.model.config, "question", QUESTIONS[0])
    assert predictor.segment_questions(["mug"], instances=True) == [QUESTIONS_EACH[0].replace("{expression}", "mug")]


def test_predict_gives_each_instance_a_colour(predictor: Predictor, image: Image.Image, tmp_path, monkeypatch) -> None:
    image.save(tmp_path / "a.png")
    masks = [_column(0, 10), _column(0, 10), _column(20, 30)]
    answers = [
        Answer("[SEG], [SEG] and [SEG]", masks, [0.5, 0.25, 0.75], 0.9),
        Answer("There is none.", [], [], 0.1),
        Answer("[SEG] [SEG]", masks[:2], [0.5, 0.5], 0.9),
    ]
    monkeypatch.setattr(Predictor, "from_pretrained", lambda *values: predictor)
    monkeypatch.setattr(Predictor, "chat_many", lambda self, chats, sampling, soft: [list(answers) for _ in chats])
    captions: list[str] = []

    def draw(shown, regions, texts, of_texts):
        captions.extend(texts)
        assert [len(of_text) for of_text in of_texts] == [1, 1, 0, 2]
        return shown

    monkeypatch.setattr("pixel_sail.commands.work.predict.draw_answers", draw)
    command = ["predict", "model", "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--instances"]
    monkeypatch.setattr(sys, "argv", [*command, "--text", "mug", "--text", "cat", "--ask", "What is it?"])
    predict.main()
    assert captions == ["mug 1, score 0.50", "mug 2, score 0.75", "cat: There is none.", "What is it?: [SEG] [SEG]"]
    records = json.loads((tmp_path / "out/a.json").read_text())["answers"]
    assert [len(record["masks"]) for record in records] == [2, 0, 2]  # what is asked is answered as it is
    assert records[0]["scores"] == [0.5, 0.75] and Path(tmp_path / "out/a_0_1.png").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--ask", "What is it?"])
    with pytest.raises(SystemExit):
        predict.main()
