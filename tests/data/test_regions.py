"""Regions as users draw them: closed forms, and not one prompted pixel lost."""

from __future__ import annotations

import numpy as np
import pytest

from pixel_sail.config import PromptConfig
from pixel_sail.data.masks import area_px, decode_mask, encode_mask
from pixel_sail.data.prompts import prompt_ids
from pixel_sail.data.regions import (
    Box,
    Points,
    Scribble,
    as_users_draw,
    draw_region,
    draw_regions,
    imitate,
    name_regions,
    undrawn,
)
from pixel_sail.types import BadSample, Sample, Turn

SIZE = (30, 40)  # height, width


def drawn(region) -> np.ndarray:
    return decode_mask(draw_region(region, SIZE, "<Prompt0>"))


def numbered(question: str, regions) -> tuple[str, dict]:
    drawn = draw_regions(regions, SIZE)
    return name_regions(question, drawn), drawn


def ring() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    far = (y - 15) ** 2 + (x - 20) ** 2
    return (far < 100) & (far > 30)


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        (Box(2, 3, 5, 7), (slice(3, 7), slice(2, 5))),
        (Box(2.2, 3.9, 4.1, 6.01), (slice(3, 7), slice(2, 5))),  # every pixel that it touches
        (Box(-5, -5, 3, 2), (slice(0, 2), slice(0, 3))),  # cut at the border
        (Box(38, 28, 99, 99), (slice(28, 30), slice(38, 40))),
        (Box(-1e300, -1e300, 1e300, 1e300), (slice(0, 30), slice(0, 40))),
        (Box(7.3, 7.3, 7.4, 7.4), (slice(7, 8), slice(7, 8))),
    ],
)
def test_box(box: Box, pixels: tuple) -> None:
    expected = np.zeros(SIZE, dtype=bool)
    expected[pixels] = True
    assert np.array_equal(drawn(box), expected)


def test_points_are_the_pixels_that_they_lie_in() -> None:
    mask = drawn(Points(((0, 0), (39.9, 29.9), (4.5, 2.2))))
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(0, 0), (2, 4), (29, 39)]


def test_a_scribble_passes_through_its_points() -> None:
    mask = drawn(Scribble(((2.5, 5.5), (30.5, 5.5), (30.5, 25.5)), width_px=1))
    assert mask[5, 2:31].all() and mask[5:26, 30].all() and mask.sum() < 60


@pytest.mark.parametrize("corner", [(0, 0), (3999, 0), (0, 2999), (3999, 2999), (2047, 1533)])
def test_a_point_in_a_large_image_prompts_its_patch(corner: tuple[int, int]) -> None:
    point = draw_region(Points((corner,)), (3000, 4000), "<Prompt0>")
    grid = prompt_ids({0: point}, (3000, 4000), (48, 64), "x").view(48, 64)
    assert int(grid[corner[1] * 48 // 3000, corner[0] * 64 // 4000]) == 0
    assert int((grid == 0).sum()) == 1


def test_imitated_drawings_lie_where_the_mask_lies() -> None:
    mask, rng = ring(), np.random.default_rng(0)
    rle = encode_mask(mask)
    assert imitate(rle, "mask", rng) == rle
    ys, xs = np.nonzero(mask)
    box = decode_mask(imitate(rle, "box", rng))
    assert box.sum() == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
    assert (box & mask).sum() == mask.sum()
    points = {tuple(np.argwhere(decode_mask(imitate(rle, "point", rng)))[0]) for _ in range(200)}
    assert len(points) > 100 and all(mask[p] for p in points)
    for _ in range(50):
        line = decode_mask(imitate(rle, "scribble", rng))
        assert line.any() and not (line & ~mask).any() and line.sum() < mask.sum()


def test_rates_of_drawings_and_of_absent_prompts() -> None:
    mask = encode_mask(ring())
    sample = Sample("k", None, (Turn("What is <Prompt0>?", "a ring"),), prompts={0: mask})
    config = PromptConfig(mask=0.2, box=0.4, point=0.4, absent=0.25)
    areas, absent = [], []
    for seed in range(2000):
        varied = as_users_draw(sample, config, np.random.default_rng(seed))
        areas.append(area_px(varied.prompts[0]))
        absent += [turn for turn in varied.turns[1:]]
    shares = [areas.count(area_px(mask)) / 2000, areas.count(1) / 2000]
    np.testing.assert_allclose(shares, [0.2, 0.4], atol=0.035)
    np.testing.assert_allclose(len(absent) / 2000, 0.25, atol=0.03)
    assert all(turn.answer == turn.question[8:-1] + " is not in the image." for turn in absent)
    assert len({turn.question for turn in absent}) == 14 and "What is <Prompt0>?" not in {t.question for t in absent}


def test_a_sample_without_prompts_is_left_alone() -> None:
    sample = Sample("k", None, (Turn("a", "b"),))
    assert as_users_draw(sample, PromptConfig(absent=1.0), np.random.default_rng(0)) is sample


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("What is this?", "<Prompt0> <Prompt1> What is this?"),
        ("Is <region> left of <region>?", "Is <Prompt0> left of <Prompt1>?"),
        ("Is <Prompt1> left of <Prompt0>?", "Is <Prompt1> left of <Prompt0>?"),
    ],
)
def test_names(question: str, named: str) -> None:
    text, regions = numbered(question, [Box(0, 0, 2, 2), Box(5, 5, 9, 9)])
    assert text == named and sorted(regions) == [0, 1] and area_px(regions[1]) == 16


def test_names_by_number() -> None:
    text, regions = numbered("What?", {7: Box(0, 0, 2, 2)})
    assert text == "<Prompt7> What?" and list(regions) == [7]
    assert undrawn("<Prompt7> <Prompt3> <Prompt3>", regions) == [3]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([Box(0, 0, 2, 2)] * 16, "16 regions: one question has at most 15"),
        ({15: Box(0, 0, 2, 2)}, "there is no <Prompt15>"),
        ([Box(50, 0, 60, 2)], "the region of <Prompt0> is empty within the image"),
        ([Box(3, 3, 3, 9)], "the box of <Prompt0> is [3.0, 3.0, 3.0, 9.0]; a box is x0,y0,x1,y1"),
        ([Box(float("nan"), 3, 4, 9)], "the box of <Prompt0>"),
        ([Points(((40, 3),))], "the point (40, 3) of <Prompt0> is outside the image of 40 x 30 pixels"),
        ([Points(())], "the region of <Prompt0> is empty"),
        ([Scribble(((1, 1),))], "the scribble of <Prompt0>"),
        ([Scribble(((100, 100), (200, 200)))], "the region of <Prompt0> is empty within the image"),
        ([np.zeros(SIZE, bool)], "the region of <Prompt0> is empty"),
        ([np.ones((3, 4), bool)], "the region of <Prompt0> is [3, 4], the image [30, 40]"),
        ([Box(0, 0, 2, 2)] * 3, "the question has 2 <region> and 3 regions"),
    ],
)
def test_bad_regions_say_why(regions, message: str) -> None:
    with pytest.raises(BadSample) as error:
        numbered("Is <region> left of <region>?" if message.startswith("the question") else "?", regions)
    assert message in str(error.value)
