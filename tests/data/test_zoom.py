"""Crops around small targets: where they lie, what is on them, and which turns stay."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pixel_sail.config import ConfigError, build_config
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import area_px, decode_mask, encode_mask
from pixel_sail.data.mixture import Mixture
from pixel_sail.data.zoom import LARGEST_ZOOM, LEAST_ZOOM, as_zoomed, crop, from_crop, to_crop, zoom_box
from pixel_sail.types import BadSample, Sample, Turn

WIDTH, HEIGHT = 96, 64


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def sample() -> Sample:
    """A small target, a large one, one far from the first, and an answer without a mask."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([2 * columns, 3 * rows, rows * 0], axis=-1).astype(np.uint8)  # which tell their place
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    turns = (Turn("small?", "[SEG]"), Turn("large?", "[SEG]"), Turn("both?", "[SEG] and [SEG]"), Turn("none?", "no"))
    masks = [rectangle(20, 30, 5, 3), rectangle(10, 5, 80, 50), rectangle(20, 30, 5, 3), rectangle(90, 2, 4, 4)]
    return Sample("s", file.getvalue(), turns, tuple(map(encode_mask, masks)), {0: encode_mask(rectangle(0, 0, 9, 9))})


def test_the_crop_has_the_target_and_its_turn() -> None:
    whole, sides = sample(), set()
    for seed in range(40):
        zoomed = as_zoomed(whole, 1.0, np.random.default_rng(seed))
        assert zoomed.image == whole.image and zoomed.prompts == whole.prompts and zoomed.prompt_images == {}
        asked = [turn.question for turn in zoomed.turns]
        assert asked == ["small?", "none?"] and zoomed.mask_images == (1,)  # the others are not all in any crop
        (content,) = zoomed.more_images
        image, mask = load_image(content), decode_mask(zoomed.masks[0])
        assert mask.shape == (image.height, image.width) and max(image.size) == WIDTH
        pixels = np.asarray(image, dtype=float)[mask]  # the mask is where the target is, by the colours
        assert pixels[:, 0].min() >= 2 * 20 - 2 and pixels[:, 0].max() <= 2 * 24 + 2
        assert pixels[:, 1].min() >= 3 * 30 - 3 and pixels[:, 1].max() <= 3 * 32 + 3
        sides.add(round(5 * WIDTH / mask.any(0).sum()))
    assert min(sides) <= 14 and max(sides) >= 18  # from 12, an eighth of the image, to 20


def test_shares_and_what_stays_as_it_is() -> None:
    whole = sample()
    assert as_zoomed(whole, 0.0, np.random.default_rng(0)) is whole
    odd = replace(whole, masks=whole.masks[:2])  # two too few: the encoder says so
    assert as_zoomed(odd, 1.0, np.random.default_rng(0)) is odd
    drawn = [as_zoomed(whole, 0.25, np.random.default_rng(seed)) is not whole for seed in range(400)]
    assert 70 < sum(drawn) < 130
    large = replace(whole, turns=whole.turns[1:2], masks=whole.masks[1:2])
    text = Sample("t", None, (Turn("a?", "b"),))
    pair = replace(whole, more_images=(b"x",))
    wrong = replace(whole, masks=tuple(encode_mask(decode_mask(m)[1:]) for m in whole.masks))  # the encoder says so
    for other in (large, text, pair, wrong):
        assert as_zoomed(other, 1.0, np.random.default_rng(0)) is other
    with pytest.raises(BadSample, match="^s: cannot decode"):
        as_zoomed(replace(whole, image=b"no image"), 1.0, np.random.default_rng(0))


def test_boxes_of_prediction() -> None:
    """The object is in the middle where the image allows, all of it is in the crop, and none of its pixels is lost."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        height, width = rng.integers(20, 120, size=2)
        mask = np.zeros((height, width), dtype=bool)
        y, x = rng.integers(0, height - 2), rng.integers(0, width - 2)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = rng.random() > 0.05
        box = zoom_box(mask)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        longest = max(len(rows), len(columns))
        side = max(np.ceil(2.5 * longest), np.ceil(max(height, width) / LARGEST_ZOOM))
        if not mask.any() or side * LEAST_ZOOM > max(height, width):
            assert box is None
            continue
        seen += 1
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        assert left <= columns[0] and columns[-1] < right and top <= rows[0] and rows[-1] < bottom
        for start, stop, first, last, length in ((left, right, *columns[[0, -1]], width),
                                                 (top, bottom, *rows[[0, -1]], height)):  # fmt: skip
            assert start == 0 or stop == length or abs((first + last + 1) - (start + stop)) <= 1
        size = crop(Image.new("RGB", (width, height)), box).size
        assert to_crop(mask, box).shape == size[::-1] and max(size) == max(width, height)
        assert np.array_equal(from_crop(to_crop(mask, box), box, mask.shape), mask)
    assert seen > 100


def test_the_stream_of_a_mixture(tmp_path) -> None:
    class Source:
        problems: list[str] = []

        def __len__(self) -> int:
            return 3

        def key(self, index: int) -> str:
            return "s"

        def sample(self, index: int, rng: np.random.Generator) -> Sample:
            return sample()

    plain, zoomed = (Mixture([Source()], [1.0], seed=0, zoom=zoom) for zoom in (0.0, 0.5))
    drawn = [len(zoomed.sample(i).images) for i in range(60)]
    assert [len(plain.sample(i).images) for i in range(60)] == [1] * 60 and 15 < drawn.count(2) < 45
    assert zoomed.sample(drawn.index(2)) == zoomed.sample(drawn.index(2))
    assert sum(area_px(mask) for mask in zoomed.sample(drawn.index(2)).masks) > 0


def test_a_cache_has_no_features_of_crops() -> None:
    expert = {"name": "dino", "kind": "timm", "path": "x", "at": "patches", "size_px": 32, "cache": "c"}
    values = {
        "run": {"dir": "runs/x"},
        "model": {"base": "base"},
        "data": {"root": "data", "mixture": [{"source": "refcoco"}], "zoom": 0.5},
        "train": {"steps": 1, "batch_size": 1},
    }
    build_config(values | {"experts": [expert | {"cache": None}]}, "test")
    with pytest.raises(ConfigError, match="data.zoom draws crops, of which the cache of expert 'dino' has no features"):
        build_config(values | {"experts": [expert]}, "test")
