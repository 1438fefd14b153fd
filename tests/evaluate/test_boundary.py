"""Boundary IoU and small targets: closed forms, brute force, and that the benchmarks report them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.evaluate.referring import ReferringBenchmark
from pixel_sail.metrics import DetailScore, boundary, boundary_iou
from pixel_sail.types import RLE


def box(left: int, top: int, width: int, height: int, size_hw: tuple[int, int] = (100, 100)) -> RLE:
    mask = np.zeros(size_hw, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return encode_mask(mask)


def test_two_frames_by_hand() -> None:
    """100 x 100 pixels have a diagonal of 141.4 and so a boundary of 3: a box of 40 keeps a frame of 40^2 - 34^2."""
    still = box(20, 30, 40, 40)
    assert boundary(decode_mask(still), 3).sum() == 40**2 - 34**2 == 444
    assert boundary_iou(still, still) == 1
    # shifted by 3: boxes share 37 x 40, box and hollow 34 x 34 twice, hollows 31 x 34; the frames 1480 - 2312 + 1054
    assert boundary_iou(still, box(23, 30, 40, 40)) == pytest.approx(222 / (2 * 444 - 222)) == pytest.approx(1 / 3)
    assert boundary_iou(still, box(20, 30, 34, 34)) < 0.5 < 34**2 / 40**2  # a mask too small by 6 pixels: IoU 0.72
    assert boundary_iou(still, box(0, 0, 10, 10)) == boundary_iou(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 0


def test_the_edge_of_the_image_is_a_contour_and_no_boundary_is_thinner_than_a_pixel() -> None:
    everything = np.ones((60, 80), dtype=bool)
    assert boundary(everything, 2).sum() == 60 * 80 - 56 * 76
    tiny = box(2, 2, 4, 4, (10, 10))  # 2 % of the diagonal is 0.3 pixels
    assert boundary_iou(tiny, box(3, 3, 2, 2, (10, 10))) == 0  # the hollow of one box is all of the other
    assert boundary_iou(tiny, tiny) == 1


def test_brute_force() -> None:
    rng = np.random.default_rng(0)
    for distance_px in (1, 2, 4):
        mask = np.kron(rng.random((5, 7)) > 0.3, np.ones((6, 6))).astype(bool)
        outside = np.argwhere(~np.pad(mask, 1)) - 1  # one row of background around the image
        gaps = np.abs(np.argwhere(mask)[:, None] - outside[None]).max(-1).min(-1)  # to the nearest background pixel
        expected = np.zeros_like(mask)
        expected[tuple(np.argwhere(mask).T)] = gaps <= distance_px
        assert np.array_equal(boundary(mask, distance_px), expected)


def test_small_targets_are_scored_apart() -> None:
    score = DetailScore()
    score.update(box(10, 0, 19, 10), box(0, 0, 19, 10))  # 190 of 10,000 pixels, the limit is 200: 90 shared of 290
    score.update(None, box(0, 0, 10, 10))
    score.update(box(0, 0, 20, 10), box(0, 0, 20, 10))  # exactly at the limit: not small
    result = score.result()
    assert result["small_giou"] == pytest.approx(100 * (90 / 290) / 2)
    assert result["small_ciou"] == pytest.approx(100 * 90 / (290 + 100))
    assert (result["small_cases"], result["small_below"]) == (2, 2.0)
    assert DetailScore().result()["boundary_iou"] is None


def lines_of(masks: list[RLE | None]) -> list[dict]:
    return [{"segmentation": mask} for mask in masks]


@pytest.mark.parametrize("name", ["refcoco:val", "grefcoco:val"])
def test_benchmarks_report_them(dataset: Path, name: str) -> None:
    benchmark = ReferringBenchmark.read(dataset, name)
    right = benchmark.score(lines_of([case.mask for case in benchmark.cases]))
    assert right["boundary_iou"] == 100 and right["cases"] == len(benchmark.cases)
    assert benchmark.score(lines_of([None] * len(benchmark.cases)))["boundary_iou"] == 0


def test_a_generalized_prediction_that_counts_as_empty_has_no_boundary_either(dataset: Path) -> None:
    benchmark = ReferringBenchmark.read(dataset, "grefcoco:val", min_pixels=50)
    targets = [case.mask for case in benchmark.cases]
    dots = [None if mask is None else _first_pixels(mask, 49) for mask in targets]
    assert benchmark.score(lines_of(dots))["boundary_iou"] == 0
    dots = [None if mask is None else _first_pixels(mask, 50) for mask in targets]
    assert benchmark.score(lines_of(dots))["boundary_iou"] > 0


def _first_pixels(mask: RLE, count: int) -> RLE:
    kept = np.zeros(mask["size"], dtype=bool)
    kept[tuple(np.argwhere(decode_mask(mask))[:count].T)] = True
    return encode_mask(kept)
