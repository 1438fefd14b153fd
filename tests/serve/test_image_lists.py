"""The Python API about several images at once, and a second look at what is small."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image
from tiny_predictor import tiny_predictor

from pixel_sail.data.regions import Box, OnImage
from pixel_sail.errors import UserError
from pixel_sail.serve.predictor import Answer, Chat, Predictor
from pixel_sail.serve.remote import PixelSailModel, PixelSailProcessor
from pixel_sail.types import BadSample


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((50, 70), (30, 40), (64, 16))]


@pytest.fixture
def says_seg(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is one [SEG]; states and masks stay the model's own."""
    seg, stop = predictor.encoder.tokens.seg, predictor.encoder.end_ids[0]
    steps: list[int] = []

    def choose(logits, sampling) -> list[int]:
        steps.append(seg if len(steps) % 2 == 0 else stop)
        return [steps[-1]] * len(logits)

    monkeypatch.setattr("pixel_sail.model.generation._choose", choose)


@pytest.mark.usefixtures("says_seg")
def test_masks_are_on_the_image_that_is_asked_for(predictor: Predictor, images: list) -> None:
    before = predictor.images_encoded
    (last,) = predictor.segment(images, "mug")
    assert last.masks[0].shape == (64, 16) and predictor.images_encoded == before + 3
    each = predictor.segment(images, ["mug"] * 3, masks_on=[0, 1, -1])
    assert [answer.masks[0].shape for answer in each] == [(50, 70), (30, 40), (64, 16)]
    assert predictor.images_encoded == before + 6  # once for all questions
    for on, answer in enumerate(each):
        (alone,) = predictor.segment(tuple(images), "mug", soft=True, masks_on=on)
        assert (alone.masks[0] != answer.masks[0]).mean() < 0.01
    (first,) = predictor.segment(images[0], "mug", soft=True)
    (same,) = predictor.segment(images[:1], "mug", soft=True)
    assert np.array_equal(first.probabilities[0], same.probabilities[0])
    two = predictor.chat_many([Chat(images, ["what?"], masks_on=1), Chat(images[2], ["what?"]), Chat(None, ["what?"])])
    assert [[m.shape for m in answer.masks] for (answer,) in two[:2]] == [[(30, 40)], [(64, 16)]]


@pytest.mark.usefixtures("says_seg")
def test_regions_on_any_image(predictor: Predictor, images: list) -> None:
    regions = [OnImage(1, Box(0, 0, 20, 10)), Box(0, 0, 60, 40), OnImage(2, Box(0, 40, 9, 60))]
    (answer,) = predictor.segment(images, "what is like <Prompt0>, <Prompt1> and <Prompt2>", regions)
    assert answer.masks[0].shape == (64, 16)
    prefix = predictor.encoder.images_prefix
    seen = {}

    def noted(pictures, drawn, key, on):
        seen.update(on)
        return prefix(pictures, drawn, key, on)

    predictor.encoder.images_prefix = noted
    try:
        predictor.chat(images, "<region> <region> <region>?", regions)
    finally:
        del predictor.encoder.images_prefix
    assert seen == {0: 1, 2: 2}


def test_what_cannot_be_asked_says_why(predictor: Predictor, images: list) -> None:
    for wrong, message in (
        ({"masks_on": 3}, "masks_on is 3, and there are 3 images: they are counted from 0"),
        ({"masks_on": [0, 1]}, "masks_on has 2 numbers for 1 questions; give one for each"),
        (
            {"regions": [OnImage(3, Box(0, 0, 9, 9))]},
            "the region of <Prompt0> is on image 3, counted from 0, and there",
        ),
        (
            {"regions": [OnImage(1, np.ones((5, 5), bool))]},
            r"the region of <Prompt0> is \[5, 5\], the image \[30, 40\]",
        ),
    ):
        with pytest.raises((UserError, BadSample), match=message):
            predictor.chat(images, "what?", **wrong)
    with pytest.raises(UserError, match="the list of images is empty"):
        predictor.chat([], "what?")
    with pytest.raises(UserError, match="masks_on is 1, and there is one image"):
        predictor.segment(images[0], "mug", masks_on=1)
    with pytest.raises(UserError, match="masks_on is 1, and there is one image"):
        predictor.segment(images[0], "mug", masks_on=1, zoom=True)
    with pytest.raises(UserError, match="zoom looks closer at one image, and there are 3"):
        predictor.segment(images, "mug", zoom=True)


def test_a_second_look_is_put_back_into_the_image(predictor: Predictor, images: list, monkeypatch) -> None:
    """The first look finds a small, a large, an empty and no mask; then one that the second look does not find."""
    size, asked = (50, 70), []
    small, large = np.zeros(size, bool), np.ones(size, bool)
    small[10:14, 20:26] = True
    looks = [[small], [large], [small & False], [], [small, small]]
    first = [Answer("[SEG]" * len(masks), masks, [0.5] * len(masks), 0.9) for masks in looks]

    def chat_many(chats, sampling=None, soft=False):
        if not asked:
            asked.append(chats)
            return [list(first)]
        asked.append(chats)
        answers = []
        for chat in chats:
            height, width = chat.image[1].size[::-1]
            mask = np.zeros((height, width), bool)
            mask[: height // 2] = chat.questions == ["a"]
            answers.append([Answer("closer [SEG]", [mask], [0.8], 0.7, [mask * np.float32(0.6)])])
        return answers

    monkeypatch.setattr(predictor, "chat_many", chat_many)
    (answers,) = predictor.zoomed([Chat(images[0], list("abcde"), [Box(0, 0, 9, 9)], [("q", "a")])], soft=True)
    assert answers[1:] == first[1:]
    assert (answers[0].text, answers[0].scores, answers[0].presence) == ("closer [SEG]", [0.8], 0.7)
    expected = np.zeros(size, bool)  # a crop of 15 x 15 pixels around (23, 12); the upper half of it
    expected[4:12, 15:30] = True
    assert np.abs(answers[0].masks[0].astype(int) - expected).sum() <= 15  # a row
    assert np.allclose(answers[0].probabilities[0], 0.6 * answers[0].masks[0])
    again = asked[1]
    assert [chat.questions for chat in again] == [["a"], ["e"]]
    for chat in again:
        assert chat.image[0] is images[0] and max(chat.image[1].size) == 70
        assert chat.regions == [Box(0, 0, 9, 9)] and chat.history == [("q", "a")] and chat.masks_on == -1


def test_segment_zooms_where_it_is_asked_to(predictor: Predictor, images: list, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(predictor, "zoomed", lambda chats, soft: calls.append(soft) or [["zoomed"]])
    monkeypatch.setattr(predictor, "chat_many", lambda *_, **__: [["plain"]])
    assert predictor.segment(images[0], "mug") == ["plain"]
    assert predictor.segment(images[0], "mug", zoom=True) == ["zoomed"]
    monkeypatch.setattr(predictor, "zoom", True)
    assert predictor.segment(images[0], "mug", soft=True) == ["zoomed"] and calls == [False, True]
    assert predictor.segment(images[0], "mug", zoom=False) == ["plain"]


def test_the_model_of_the_hub_takes_the_same(predictor: Predictor, images: list) -> None:
    for name in ("segment", "chat"):
        ours, theirs = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (Predictor, PixelSailModel))
        assert ours == theirs
    processor = PixelSailProcessor(predictor.encoder.tokenizer, predictor.model.config)
    region = OnImage(1, Box(0, 0, 9, 9))
    batch = processor(images[:2], "what is <Prompt0>?", "[SEG]", [np.ones((50, 70), bool)], [region], masks_on=0)
    assert batch.masks_per_image == (1, 0) and batch.prompted.min() >= batch.grids_hw[0][0] * batch.grids_hw[0][1]
    batch = processor(images[:2], "what?", "[SEG]", [np.ones((30, 40), bool)])
    assert batch.masks_per_image == (0, 1)
