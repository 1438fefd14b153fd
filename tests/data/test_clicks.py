"""Clicks: where they are, the next one against brute force, and the turns that training makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_refer_dataset
from tiny_predictor import tiny_predictor
from tiny_run import tiny_config

from pixel_sail.config import ClickConfig
from pixel_sail.data.clicks import place_clicks
from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.mixture import open_mixture
from pixel_sail.data.next_click import next_click
from pixel_sail.data.refinement import with_clicks, wrong_mask
from pixel_sail.tokens import CLICK, SEG
from pixel_sail.types import BadSample, Click, Sample, Turn


def brute_force(predicted: np.ndarray, truth: np.ndarray, clicked: np.ndarray) -> tuple[int, int, bool] | None:
    """Pixel by pixel: the distance to the nearest pixel, or border cell, that is not of the same error."""
    height, width = truth.shape
    best: dict[bool, tuple[float, int, int]] = {}
    for positive in (True, False):
        error = truth & ~predicted if positive else predicted & ~truth
        outside = [
            (y, x)
            for y in range(-1, height + 1)
            for x in range(-1, width + 1)
            if not (0 <= y < height and 0 <= x < width and error[y, x])
        ]
        best[positive] = (0.0, 0, 0)
        for y in range(height):
            for x in range(width):
                if error[y, x] and not clicked[y, x]:
                    depth = min((y - a) ** 2 + (x - b) ** 2 for a, b in outside) ** 0.5
                    if depth > best[positive][0]:
                        best[positive] = (depth, x, y)
    positive = best[True][0] > best[False][0]
    depth, x, y = best[positive]
    return (x, y, positive) if depth else None


def test_the_next_click_is_that_of_brute_force() -> None:
    rng, signs = np.random.default_rng(0), set()
    for _ in range(30):
        shape = tuple(rng.integers(1, 12, size=2))
        cells = rng.random((2, *shape))
        truth, predicted = cells < rng.uniform(0, 1.3, size=(2, 1, 1))
        clicked = rng.random(shape) < 0.1
        expected, click = brute_force(predicted, truth, clicked), next_click(predicted, truth, clicked)
        assert (click and (click.x, click.y, click.positive)) == expected
        signs.add(click and click.positive)
    assert signs == {True, False, None}


def test_a_click_is_in_the_middle_of_the_larger_error() -> None:
    truth, predicted = np.zeros((20, 30), dtype=bool), np.zeros((20, 30), dtype=bool)
    truth[2:9, 3:10] = True
    predicted[12:15, 20:23] = True
    assert next_click(predicted, truth) == Click(6, 5, True)
    assert next_click(predicted | truth, truth) == Click(21, 13, False)
    assert next_click(truth, truth) is None


def test_places_in_the_patches() -> None:
    clicks = [Click(0, 0, True), Click(69, 49, False), Click(35.2, 20.9, True)]
    placed = place_clicks([5, 6, 9], clicks, (50, 70), (4, 7), "x")
    assert placed.tokens.tolist() == [5, 6, 9] and placed.patches.tolist() == [0, 27, 1 * 7 + 3]
    # half a pixel from the corner of a patch of 10 x 12.5 pixels
    assert placed.values[0].tolist() == pytest.approx([1, 0, -1 + 2 * 0.05, -1 + 2 * 0.04])
    assert placed.values[1].tolist() == pytest.approx([0, 1, 1 - 2 * 0.05, 1 - 2 * 0.04])
    assert placed.values[2].tolist() == pytest.approx([1, 0, 0.1, 2 * (20.5 / 12.5 - 1) - 1])
    with pytest.raises(BadSample, match=r"x: the click \(70, 3\) is outside the image of 70 x 50 pixels"):
        place_clicks([5], [Click(70, 3, True)], (50, 70), (4, 7), "x")
    with pytest.raises(BadSample, match="x: there are clicks, but no image"):
        place_clicks([5], [Click(0, 0, True)], (50, 70), (0, 0), "x")


def box(top: int, left: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((60, 80), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


MASKS = [box(2, 2), box(35, 50), box(2, 50, side=9), box(40, 5, side=3)]
SAMPLE = Sample(
    "a",
    None,
    (Turn("q0", f"{SEG} a"), Turn("none", "no"), Turn("two", f"{SEG} and {SEG}"), Turn("q3", SEG)),
    tuple(map(encode_mask, MASKS)),
)


def test_turns_of_clicks_come_first_and_mend() -> None:
    """Each click is on its side of the target; the other turns keep their masks and their order."""
    lengths, kinds, signs = set(), set(), set()
    for seed in range(60):
        sample = with_clicks(SAMPLE, ClickConfig(share=1.0, turns=4), np.random.default_rng(seed))
        count = sum(bool(turn.clicks) for turn in sample.turns)
        first = 0 if sample.turns[0].clicks else 1
        assert all(turn.clicks for turn in sample.turns[first : first + count]) and 1 <= count <= 4
        targets = sample.masks[first : first + count]
        (target,) = {rle["counts"] for rle in targets}
        number = next(i for i, rle in enumerate(SAMPLE.masks) if rle["counts"] == target)
        assert number in (0, 3)  # of a turn with one mask
        for turn in sample.turns[first : first + count]:
            assert turn.question == CLICK * len(turn.clicks) and turn.answer == SEG and len(turn.clicks) <= 3
            for click in turn.clicks:
                assert MASKS[number][int(click.y), int(click.x)] == click.positive
                signs.add(click.positive)
        rest = [turn for turn in sample.turns if not turn.clicks]
        assert sorted(turn.question for turn in rest) == sorted(turn.question for turn in SAMPLE.turns)
        of_turns, start = {}, 0
        for turn in sample.turns:
            stop = start + turn.answer.count(SEG)
            of_turns[turn.question] = sample.masks[start:stop]
            start = stop
        assert start == len(sample.masks) == 4 + count
        assert of_turns["q0"] == SAMPLE.masks[:1] and of_turns["q3"] == SAMPLE.masks[3:]
        assert of_turns["two"] == SAMPLE.masks[1:3]
        assert [turn.question for turn in rest if turn is not sample.turns[0]] == [
            turn.question for turn in SAMPLE.turns if turn is not sample.turns[0]
        ]
        lengths.add(count)
        kinds.add((first, first and of_turns[sample.turns[0].question][0]["counts"] == target))
    assert lengths == {1, 2, 3, 4} and signs == {True, False} and kinds == {(0, 0), (1, True), (1, False)}


def test_what_stays_as_it_is() -> None:
    rng = np.random.default_rng
    words = Sample("a", None, (Turn("q", "no"), Turn("two", f"{SEG}{SEG}")), SAMPLE.masks[:2])
    assert with_clicks(words, ClickConfig(share=1.0), rng(0)) is words
    empty = Sample("a", None, (Turn("q", SEG),), (encode_mask(np.zeros((5, 5), dtype=bool)),))
    assert with_clicks(empty, ClickConfig(share=1.0), rng(0)) is empty
    short, long = replace(SAMPLE, masks=SAMPLE.masks[:3]), replace(SAMPLE, masks=SAMPLE.masks * 2)
    second = replace(SAMPLE, more_images=(b"x",), mask_images=(1,) * 4)
    for other in (short, long, replace(SAMPLE, mask_images=(0,)), second):  # what is malformed, the encoder reports
        assert with_clicks(other, ClickConfig(share=1.0), rng(0)) is other
    shares = [with_clicks(SAMPLE, ClickConfig(share=0.3), rng(seed)) is not SAMPLE for seed in range(200)]
    assert 0.2 < np.mean(shares) < 0.4


def test_of_several_images_the_first_is_clicked_on() -> None:
    """The masks keep their images; those that are refined are on the first."""
    sample = replace(SAMPLE, more_images=(b"x",), mask_images=(1, 1, 0, 0))
    for seed in range(10):
        made = with_clicks(sample, ClickConfig(share=1.0), np.random.default_rng(seed))
        assert len(made.masks) == len(made.mask_images) > 4
        on = {(rle["counts"], image) for rle, image in zip(made.masks, made.mask_images, strict=True)}
        assert on == {(rle["counts"], image) for rle, image in zip(sample.masks, sample.mask_images, strict=True)}
        ends = np.cumsum([turn.answer.count(SEG) for turn in made.turns])
        refined = {made.masks[end - 1]["counts"] for turn, end in zip(made.turns, ends, strict=True) if turn.clicks}
        assert refined == {SAMPLE.masks[3]["counts"]}


@pytest.mark.parametrize("alone", [0.0, 1.0])
def test_conversations_that_begin_with_clicks(alone: float) -> None:
    made = [with_clicks(SAMPLE, ClickConfig(share=1.0, alone=alone), np.random.default_rng(seed)) for seed in range(40)]
    assert {bool(sample.turns[0].clicks) for sample in made} == {bool(alone)}


def test_a_third_of_the_wrong_masks_lie_beside_their_place() -> None:
    """The truth itself, moved by some pixels: its clicks are at edges."""
    truth, moved = box(20, 30), 0
    places = {(y, x): np.roll(truth, (y, x), (0, 1)) for y in range(-4, 5) for x in range(-4, 5) if y or x}
    for seed in range(300):
        wrong = wrong_mask(truth, [box(2, 2)], np.random.default_rng(seed))
        moved += any(np.array_equal(wrong, place) for place in places.values())
    assert 75 < moved < 125


def test_clicks_on_a_shrunk_mask_are_in_pixels_of_the_image() -> None:
    mask = np.zeros((700, 1000), dtype=bool)
    mask[600:690, 900:990] = True
    sample = Sample("a", None, (Turn("q", SEG),), (encode_mask(mask),))
    for seed in range(8):
        made = with_clicks(sample, ClickConfig(share=1.0), np.random.default_rng(seed))
        for click in (click for turn in made.turns for click in turn.clicks):
            near = mask[int(click.y) - 4 : int(click.y) + 5, int(click.x) - 4 : int(click.x) + 5]
            assert near.any() if click.positive else not near.all()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_predictor(architecture={"clicks": True}).encoder


def test_a_click_has_the_place_of_its_patch(encoder: Encoder, tmp_path: Path) -> None:
    """Of a mixture with data.clicks: positions, patches and tokens of every click, from the text itself."""
    root = write_refer_dataset(tmp_path / "root")
    config = tiny_config(tmp_path, root, "data.clicks={share: 1.0}")
    mixture, plain = open_mixture(config), open_mixture(tiny_config(tmp_path, root))
    seen = 0
    for position in range(6):
        sample, without = mixture.sample(position), plain.sample(position)
        clicks = [click for turn in sample.turns for click in turn.clicks]
        assert {turn for turn in sample.turns if not turn.clicks} == set(without.turns)
        encoded = encoder.encode(sample)
        assert torch.equal(encoded.clicks.tokens, (encoded.input_ids == encoder.tokens.click).nonzero()[:, 0])
        assert len(encoded.clicks) == len(clicks) and not (encoded.labels == encoder.tokens.click).any()
        patch_tokens = (encoded.input_ids == encoder.tokens.vision_patch).nonzero()[:, 0]
        for number, (click, token) in enumerate(zip(clicks, encoded.clicks.tokens, strict=True)):
            (h, w), (height, width) = encoded.images[0].grid_hw, sample.masks[0]["size"]
            row, column = int((int(click.y) + 0.5) * h / height), int((int(click.x) + 0.5) * w / width)
            assert encoded.clicks.patches[number] == row * w + column
            patch = patch_tokens[row * w + column]
            assert torch.equal(encoded.position_ids[:, token], encoded.position_ids[:, patch])
            assert encoded.clicks.values[number, 0] == click.positive
            seen += 1
        stop = encoded.images[0].span[1]
        text = slice(stop, None)
        words = (encoded.input_ids != encoder.tokens.click)[text]
        first = int(encoded.position_ids[0, stop - 1]) + 1
        counted = torch.arange(first, first + len(words))
        assert (encoded.position_ids[:, text] == counted)[:, words].all()  # as if the clicks were words
    assert seen > 6


def test_clicks_that_do_not_fit_the_text(encoder: Encoder, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    click, mask = Click(3, 3, True), SAMPLE.masks[:1]
    for turn, message in (
        (
            Turn(CLICK * 2, SEG, (click,)),
            "a: the text has 2 <NO_Prompt>, .* and there are 1 clicks",
        ),
        (Turn("q", SEG, (click,)), "a: the text has 0 <NO_Prompt>"),
        (Turn(CLICK, SEG, (Click(80, 3, True),)), r"a: the click \(80, 3\) is outside the image of 80 x 60"),
    ):
        with pytest.raises(BadSample, match=message):
            encoder.encode(Sample("a", tmp_path / "a.png", (turn,), mask))
    plain = tiny_predictor().encoder
    with pytest.raises(BadSample, match="a: it has clicks, and the model takes none"):
        plain.encode(Sample("a", tmp_path / "a.png", (Turn(CLICK, SEG, (click,)),), mask))
    assert len(plain.encode(Sample("a", tmp_path / "a.png", (Turn(CLICK, SEG),), mask)).clicks) == 0  # a word as ever
