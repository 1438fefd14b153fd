"""Answers while they are made, through the protocol of transformers' streamers: put, put, ..., end."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_predictor import tiny_predictor
from transformers import TextIteratorStreamer
from transformers.generation import BaseStreamer

from pixel_sail.errors import UserError
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Predictor


class Recorder(BaseStreamer):
    """`calls`: the token ids of each `put`, then "end"."""

    def __init__(self) -> None:
        self.calls: list[list[int] | str] = []

    def put(self, value: torch.Tensor) -> None:
        assert value.device.type == "cpu" and value.dtype == torch.int64
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_a_streamer_receives_the_question_and_each_token(predictor: Predictor, image: Image.Image) -> None:
    recorder, encoder = Recorder(), predictor.encoder
    (answer,) = predictor.chat(image, "What is red?", sampling=Sampling(9), streamer=recorder)
    question, *tokens, end = recorder.calls
    assert question == encoder.question_ids("What is red?") and end == "end"
    assert 1 < len(tokens) <= 9 and all(len(token) == 1 for token in tokens)
    assert encoder.answer_text([token for (token,) in tokens]) == answer.text
    assert predictor.chat(image, "What is red?", sampling=Sampling(9))[0].text == answer.text


def test_text_comes_out_of_transformers_iterator(predictor: Predictor, image: Image.Image) -> None:
    streamer = TextIteratorStreamer(predictor.encoder.tokenizer, skip_prompt=True, timeout=60)
    answers = []

    def ask() -> None:
        answers.extend(predictor.chat(image, "What is red?", sampling=Sampling(9), streamer=streamer))

    thread = Thread(target=ask)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == answers[0].text != ""


def test_the_stop_token_is_not_streamed(predictor: Predictor, image: Image.Image, monkeypatch) -> None:
    seg, stop = predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]
    script = iter([seg, stop])
    monkeypatch.setattr("pixel_sail.model.generation._choose", lambda logits, sampling: [next(script)])
    recorder = Recorder()
    predictor.chat(image, "?", streamer=recorder)
    assert recorder.calls[1:] == [[seg], "end"]


def test_an_answer_without_the_model_is_streamed_too(predictor: Predictor, image: Image.Image) -> None:
    recorder = Recorder()
    (answer,) = predictor.chat(image, "What is <Prompt3>?", streamer=recorder)
    question, said, end = recorder.calls
    assert predictor.encoder.answer_text(said) == answer.text == "<Prompt3> is not in the image." and end == "end"


def test_a_stream_ends_where_an_answer_fails(predictor: Predictor, image: Image.Image) -> None:
    for image_or_path, questions, message in (
        ("/nowhere.jpg", "?", "no image file"),
        (image, ["What?", "Who?"], "a streamer follows one answer, and there are 2 questions"),
    ):
        recorder = Recorder()
        with pytest.raises(UserError, match=message):
            predictor.chat(image_or_path, questions, streamer=recorder)
        assert recorder.calls == ["end"]
