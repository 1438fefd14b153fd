import numpy as np
import pytest

from pixel_sail.data.masks import encode_mask
from pixel_sail.metrics import GeneralizedScore, ReferringScore, iou


def _box(left, top, width, height, size=(20, 30)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return encode_mask(mask)


TARGET = _box(5, 5, 10, 10)
SHIFTED = _box(10, 5, 10, 10)  # by half its width: 50 of 150 pixels, IoU 1/3
LARGE = _box(0, 0, 20, 10)  # 200 pixels


def test_referring_scores_of_a_shifted_and_a_right_box_by_hand():
    score = ReferringScore()
    score.update(SHIFTED, TARGET, image_id=1)
    score.update(LARGE, LARGE, image_id=1)
    score.update(None, TARGET, image_id=2)
    score.update(_box(5, 5, 5, 10), TARGET, image_id=2)  # the left half: IoU exactly 0.5 counts for Pr@0.5
    result = score.result()
    assert result["ciou"] == pytest.approx(100 * (50 + 200 + 0 + 50) / (150 + 200 + 100 + 100))
    assert result["giou"] == pytest.approx(100 * (1 / 3 + 1 + 0 + 0.5) / 4)
    assert result["pr@0.5"] == 50 and result["pr@0.6"] == 25 and result["pr@0.9"] == 25
    assert result["cases"] == 4 and result["images"] == 2
    assert list(result) == ["ciou", "giou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9", "cases", "images"]


def test_generalized_scores_by_hand():
    score = GeneralizedScore()
    score.update(None, None, image_id=1)  # absent, and predicted so: gIoU 1, nothing in cIoU
    score.update(LARGE, None, image_id=1)  # absent, 200 pixels predicted: gIoU 0, union 200
    score.update(None, TARGET, image_id=2)  # present, and missed
    score.update(SHIFTED, TARGET, image_id=3)
    result = score.result()
    assert result["giou"] == pytest.approx(100 * (1 + 0 + 0 + 1 / 3) / 4)
    assert result["ciou"] == pytest.approx(100 * 50 / (200 + 100 + 150))
    assert result["n_acc"] == 50 and result["t_acc"] == 50
    assert (result["cases"], result["no_target_cases"], result["images"]) == (4, 2, 3)


def test_a_prediction_under_the_limit_counts_as_empty_and_the_limit_is_reported():
    below, at = _box(0, 0, 7, 7), _box(0, 0, 10, 5)  # 49 and 50 pixels
    for min_pixels, expected in ((50, 50), (0, 0), (51, 100)):
        score = GeneralizedScore(min_pixels)
        score.update(below, None, 1)
        score.update(at, None, 1)
        assert score.result()["n_acc"] == expected and score.result()["min_pixels"] == min_pixels
    small = GeneralizedScore(50)
    small.update(below, below, 1)  # present, right, and too small to count
    assert small.result()["t_acc"] == 0 and small.result()["ciou"] == 0 and small.result()["n_acc"] is None
    empty = GeneralizedScore(min_pixels=0)
    empty.update(_box(0, 0, 0, 0), None, 1)  # a mask without a pixel is empty whatever the limit
    assert empty.result()["n_acc"] == 100


def test_a_referring_case_needs_a_target():
    with pytest.raises(ValueError, match="image 3: a referring case has a target"):
        ReferringScore().update(TARGET, None, image_id=3)
    assert ReferringScore().result()["ciou"] is None


def test_iou_by_hand():
    empty = _box(0, 0, 0, 0)
    assert iou(SHIFTED, TARGET) == iou(TARGET, SHIFTED) == pytest.approx(1 / 3)
    assert iou(TARGET, TARGET) == 1 and iou(None, TARGET) == iou(empty, TARGET) == iou(empty, empty) == 0
