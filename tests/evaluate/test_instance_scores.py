"""AP and cgF1 against computations that share no code with them: masks as arrays, every matching tried."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pixel_sail.data.masks import encode_mask
from pixel_sail.evaluate.instance_scores import THRESHOLDS, ConceptF1, Instances, mask_ap

SIDE = 24


def _box(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def _random_cases(rng: np.random.Generator, count: int = 40) -> list[tuple[int, int, list, list, list]]:
    """(image, category, true masks, given masks, scores): some found well, some badly, some invented or missed."""
    cases = []
    for number in range(count):
        true, given = [], []
        for k in range(rng.integers(0, 4)):
            x, y = 8 * (k % 2), 8 * (k // 2)
            true.append(_box(x, y, rng.integers(5, 9), rng.integers(5, 9)))
            if rng.random() < 0.8:
                given.append(true[-1] | _box(x, y + 8, rng.integers(0, 5), rng.integers(1, 4)))
        given += [_box(*rng.integers(0, 16, 2), *rng.integers(4, 9, 2)) for _ in range(rng.integers(0, 3))]
        order = rng.permutation(len(given))
        cases.append((number // 3, number % 3, true, [given[i] for i in order], rng.random(len(given)).tolist()))
    return cases


def _instances(cases) -> list[Instances]:
    return [
        Instances(image, category, (SIDE, SIDE), [*map(encode_mask, true)], [*map(encode_mask, given)], scores)
        for image, category, true, given, scores in cases
    ]


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def _brute_f1(cases, threshold: float, least_score: float) -> float:
    """Of all masks of the positive cases: each way to pair them is tried, and the one of the largest sum counts."""
    right = given_masks = true_masks = 0
    for _, _, true, given, scores in cases:
        kept = [mask for mask, score in zip(given, scores, strict=True) if score >= least_score]
        if not true:
            continue
        few, many = sorted((true, kept), key=len)
        best, hits = -1.0, 0
        for chosen in itertools.permutations(many, len(few)):
            ious = [_iou(a, b) for a, b in zip(few, chosen, strict=True)]
            if sum(ious) > best + 1e-12:
                best, hits = sum(ious), sum(iou >= threshold for iou in ious)
        right, given_masks, true_masks = right + hits, given_masks + len(kept), true_masks + len(true)
    precision, recall = right / given_masks, right / true_masks
    return 100 * 2 * precision * recall / (precision + recall)


def _brute_mcc(cases, least_score: float) -> float:
    """Matthews' coefficient as what it is: the correlation of two binary variables."""
    there = [float(bool(true)) for _, _, true, _, _ in cases]
    said = [float(any(score >= least_score for score in scores)) for *_, scores in cases]
    return 100 * float(np.corrcoef(there, said)[0, 1])


def _brute_ap(cases, category: int, threshold: float) -> float:
    """COCO's: greedy by score, each with the best free true mask; precision at 101 recalls, from the right the max."""
    of_category = [case for case in cases if case[1] == category]
    found = []  # (score, right)
    for _, _, true, given, scores in of_category:
        free = dict(enumerate(true))
        for score, mask in sorted(zip(scores, given, strict=True), key=lambda pair: -pair[0]):
            ious = {k: _iou(mask, other) for k, other in free.items()}
            best = max(ious, key=ious.get, default=None)
            right = best is not None and ious[best] >= threshold
            found.append((score, right))
            if right:
                del free[best]
    objects, points, right = sum(len(case[2]) for case in of_category), [], 0
    for number, (_, is_right) in enumerate(sorted(found, reverse=True), start=1):
        right += is_right
        points.append((right / objects, right / number))
    return 100 * float(
        np.mean([max((p for r, p in points if r >= least), default=0.0) for least in np.linspace(0, 1, 101)])
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_brute_force(seed: int) -> None:
    cases = _random_cases(np.random.default_rng(seed))
    instances = _instances(cases)
    for least_score in (0.5, -math.inf):
        f1 = ConceptF1.of(instances, least_score)
        of_thresholds = [_brute_f1(cases, threshold, least_score) for threshold in THRESHOLDS]
        mcc = _brute_mcc(cases, least_score)
        assert f1.pmf1 == pytest.approx(np.mean(of_thresholds)) and f1.pmf1_50 == pytest.approx(of_thresholds[0])
        assert f1.il_mcc == pytest.approx(mcc)
        assert f1.cgf1 == pytest.approx(np.mean(of_thresholds) * mcc / 100)
        assert 10 < f1.pmf1 < f1.pmf1_50 < 90 and 5 < abs(f1.il_mcc) < 90
    expected = [np.mean([_brute_ap(cases, c, threshold) for c in range(3)]) for threshold in THRESHOLDS]
    assert mask_ap(instances).tolist() == pytest.approx(expected)
    assert 5 < expected[-1] < expected[0] < 90


def test_pairs_have_the_largest_sum_not_the_best_first() -> None:
    """The first mask fits both objects; taken by the one that it fits best, it would leave the other without."""
    a, b = _box(0, 0, 10, 10), _box(10, 0, 10, 10)
    wide = _box(0, 0, 16, 10)  # IoU 10/16 with a, 6/20 with b
    case = [(0, 0, [a, b], [wide, _box(0, 0, 9, 10)], [0.9, 0.8])]  # the second: 0.9 with a, 0 with b
    f1 = ConceptF1.of(_instances(case))
    assert f1.pmf1_50 == pytest.approx(100 * 2 * 1 / 4)  # sum 0.3 + 0.9 > 0.625 + 0: one of two is right
    assert (f1.il_mcc, f1.cgf1) == (None, None)  # no negative case


def test_what_is_undefined_is_none_and_a_constant_answer_is_worth_nothing() -> None:
    box = _box(0, 0, 5, 5)
    always = _instances([(0, 0, [box], [box], [0.9]), (1, 0, [], [box], [0.9])])
    f1 = ConceptF1.of(always)
    assert (f1.pmf1, f1.il_mcc, f1.cgf1) == (100.0, 0.0, 0.0)
    f1 = ConceptF1.of(always, least_score=0.95)
    assert (f1.pmf1, f1.il_mcc, f1.cgf1) == (0.0, 0.0, 0.0)
    nothing = _instances([(0, 0, [], [], []), (1, 0, [], [box], [0.9])])
    assert ConceptF1.of(nothing) == ConceptF1(None, None, None) and mask_ap(nothing) is None
    assert mask_ap(_instances([(0, 0, [box], [], [])])).tolist() == [0.0] * 10
    right = _instances([(0, 0, [box], [box], [0.9]), (1, 0, [], [], [])])
    assert ConceptF1.of(right) == ConceptF1(100.0, 100.0, 100.0)
    assert mask_ap(right).tolist() == pytest.approx([100.0] * 10)
