import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pixel_sail.data import masks
from pixel_sail.data.masks import (
    area_px,
    check_rle,
    decode_mask,
    encode_mask,
    from_coco,
    has_pixels,
    object_mask,
    overlap_px,
    resize_nearest,
    unite,
)
from pixel_sail.types import BadSample, NoPixels

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]
FULL = encode_mask(np.ones((8, 10), dtype=bool))


def test_encode_and_decode_are_inverse_and_the_counts_are_text():
    mask = np.random.default_rng(0).random((37, 53)) > 0.7
    rle = encode_mask(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == [37, 53]
    np.testing.assert_array_equal(decode_mask(rle), mask)
    assert area_px(rle) == mask.sum()


def test_a_polygon_covers_the_pixels_it_encloses():
    expected = np.zeros((8, 10), dtype=bool)
    expected[1:5, 2:6] = True
    np.testing.assert_array_equal(decode_mask(from_coco([SQUARE], 8, 10, "a")), expected)


def test_pieces_are_united_not_added():
    overlapping = [x + 2 if i % 2 == 0 else x for i, x in enumerate(SQUARE)]
    mask = decode_mask(from_coco([SQUARE, overlapping], 8, 10, "a"))
    assert mask.dtype == bool and mask.sum() == 4 * 6
    left, right = encode_mask(np.eye(5, dtype=bool)), encode_mask(np.eye(5, dtype=bool)[::-1])
    np.testing.assert_array_equal(decode_mask(unite([left, right], (5, 5))), np.eye(5) + np.eye(5)[::-1] > 0)
    assert area_px(unite([], (5, 7))) == 0 and unite([], (5, 7))["size"] == [5, 7]


def test_crowd_and_compressed_rle_mean_the_same():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2] = True
    crowd = {"counts": [9, 2, 9], "size": [4, 5]}  # column-major: two columns of 4 and one pixel, two pixels, the rest
    np.testing.assert_array_equal(decode_mask(from_coco(crowd, 4, 5, "a")), mask)
    compressed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    for counts in (compressed["counts"], compressed["counts"].decode()):
        np.testing.assert_array_equal(decode_mask(from_coco({"size": [4, 5], "counts": counts}, 4, 5, "a")), mask)


def test_a_degenerate_piece_is_left_out_and_listed():
    left_out = []
    whole = from_coco([SQUARE], 8, 10, "a")
    assert from_coco([[1, 1, 5, 5], SQUARE, [], [3, 3]], 8, 10, "a", left_out) == whole
    assert from_coco([[1, 1, 5, 5], SQUARE], 8, 10, "a") == whole
    assert left_out == [
        f"a, polygon {number}: {piece} is no polygon; it needs x, y of at least three points"
        for number, piece in ((0, [1, 1, 5, 5]), (2, []), (3, [3, 3]))
    ]


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[1, 1, 5, 5]],
        [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]],  # smaller than a pixel
        [[2, 2, 2, 2, 2, 2]],
        [[-9, -9, -5, -9, -5, -5]],  # outside
        {"counts": [80], "size": [8, 10]},
    ],
)
def test_an_object_without_a_pixel_is_told_from_a_malformed_one(segmentation):
    with pytest.raises(NoPixels, match="^annotation 7"):
        object_mask(segmentation, 8, 10, "annotation 7")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "annotation 7, polygon 0: .* needs x, y of at least three points"),  # pycocotools: a box
        ([SQUARE[:7]], "at least three points"),
        ([[2, 1, 6, 1, 6, float("nan")]], "not finite"),
        ([[2, 1, 6, 1, 6, "x"]], "not numbers"),
        ([["2", "1", "6", "1", "6", "5"]], "not numbers"),
        ([[2, 1, 6, 1, 6, True]], "not numbers"),
        ([[2, 1, 6, 1, 6, [5]]], "not numbers"),
        ([SQUARE, "2,1"], "polygon 1: '2,1' is no polygon"),
        ([[2, 1, 6, 1, 6, 1e9]], "far outside the 8 x 10 image"),
        ([], "expected a list of polygons or an RLE"),
        (None, "expected a list of polygons or an RLE"),
        ({"counts": [9, 2, 9], "size": [4, 5]}, "of size .4, 5., the image is .8, 10."),
        ({"counts": [9, 2, 9], "size": [8, 10]}, "run lengths do not fill 8 x 10"),
        ({"counts": [-1, 81], "size": [8, 10]}, "run lengths do not fill"),
        ({"counts": "9", "size": [8, 10]}, "run lengths do not fill"),
        ({"counts": "\x00", "size": [8, 10]}, "torn"),
        ({"counts": FULL["counts"] + "T", "size": [8, 10]}, "torn"),  # ends in the middle of a number
        ({"size": [8, 10]}, "is no RLE"),
        ({"counts": "9", "size": 80}, "of size 80"),
    ],
)
def test_malformed_segmentations_are_bad_samples_that_say_where(segmentation, message):
    with pytest.raises(BadSample, match=message) as caught:
        from_coco(segmentation, 8, 10, "annotation 7")
    assert str(caught.value).startswith("annotation 7")


def _adversarial_polygon(rng, height, width):
    """Corners where deciding without drawing could go wrong: slivers, zigzags, fifths of a pixel, outside."""
    kind, points = rng.integers(5), rng.integers(3, 12)
    low, high = -0.5 * max(height, width), 1.5 * max(height, width)
    corners = rng.uniform(low, high, (points, 2)) * rng.choice([1, 1, 0.1])
    if kind == 0:  # a sliver along a column or row
        corners[:, rng.integers(2)] = rng.uniform(0, width) + rng.uniform(-1, 1, points) * rng.choice([0.1, 0.6, 1.5])
    elif kind == 1:  # there and back again: encloses nothing
        corners = np.concatenate([corners, corners[::-1]])
    elif kind == 2:  # on the grid to which pycocotools rounds, and halfway between
        corners = np.round(corners * 10) / 10
    elif kind == 3:  # as small as a few pixels
        corners = rng.uniform(0, width, 2) + rng.uniform(-2, 2, (points, 2))
    return corners.ravel().tolist()


def test_polygons_have_pixels_where_pycocotools_draws_some():
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(2500):
        height, width = (int(side) for side in rng.integers(1, 24, 2))
        pieces = [_adversarial_polygon(rng, height, width) for _ in range(rng.integers(1, 3))]
        drawn = area_px(from_coco(pieces, height, width, "a")) > 0
        assert has_pixels(pieces, height, width, "a") == drawn, (pieces, height, width)
        shown += drawn
    assert 700 < shown < 1800  # both are common


def test_large_polygons_are_not_drawn_to_know_that_they_have_pixels(monkeypatch):
    def drawn(*arguments):
        raise AssertionError("drawn")

    monkeypatch.setattr(masks.coco_mask, "frPyObjects", drawn)
    for points in (8, 23, 300):
        angles = np.arange(points) * 2 * np.pi / points + 0.1
        circle = (np.stack([np.cos(angles), np.sin(angles)], axis=1) * 40 + 60).ravel().tolist()
        assert has_pixels([circle], 120, 120, "a")
        assert has_pixels([circle], 40, 300, "a")  # partly outside
        assert has_pixels([[value - 40 for value in circle]], 300, 40, "a")


def test_check_rle_takes_every_mask_that_pycocotools_writes():
    rng = np.random.default_rng(1)
    for density in (0.0, 0.01, 0.5, 1.0):
        rle = encode_mask(rng.random((211, 97)) < density)
        assert check_rle(rle, (211, 97), "a") == rle


def test_overlap_is_that_of_the_pixels():
    first, second = np.random.default_rng(2).random((2, 30, 40)) > 0.5
    assert overlap_px(encode_mask(first), encode_mask(second)) == ((first & second).sum(), (first | second).sum())


def test_resize_nearest_takes_the_pixel_under_the_centre():
    mask = np.array([[True, False, False, True]])
    assert resize_nearest(mask, (2, 8)).tolist() == [[True, True, False, False, False, False, True, True]] * 2
    assert resize_nearest(mask, (1, 2)).tolist() == [[False, True]]  # the centres 1.0 and 3.0 lie on pixels 1 and 3
    assert resize_nearest(np.stack([mask, ~mask]), (3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_resize_nearest_gives_a_mask_of_its_own(order):
    rng = np.random.default_rng(0)
    for size in ((12, 9), (24, 18), (5, 30), (1, 1), (12, 10)):
        mask = np.asarray(rng.random((12, 9)) < 0.5, order=order)
        rows = [(2 * y + 1) * 12 // (2 * size[0]) for y in range(size[0])]
        columns = [(2 * x + 1) * 9 // (2 * size[1]) for x in range(size[1])]
        resized = resize_nearest(mask, size)
        assert (resized == mask[np.ix_(rows, columns)]).all() and not np.shares_memory(resized, mask)
        assert (resize_nearest(np.stack([mask, ~mask]), size) == np.stack([resized, ~resized])).all()
