"""Referring segmentation: from the cases of one picture to prediction lines, and from the lines to scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.sources.cases import Benchmark, Case
from pixel_sail.evaluate.predictions import Line
from pixel_sail.metrics import MIN_PIXELS, GeneralizedScore, ReferringScore
from pixel_sail.types import RLE, BadSample


class Answer(Protocol):
    text: str
    masks: list[np.ndarray]  # (H, W) bool each, at the picture's own size; one for each [SEG] of the text


class Segmenter(Protocol):
    """What scoring asks of a model; `pixel_sail.serve.predictor.Predictor` is one."""

    def segment(self, image: Image.Image, expressions: list[str]) -> Sequence[Answer]: ...


def by_image(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each picture together."""
    ordered = sorted(cases, key=lambda case: case.image_id)
    return [list(group) for _, group in groupby(ordered, key=lambda case: case.image_id)]


def predict_image(segmenter: Segmenter, cases: Sequence[Case]) -> list[Line]:
    """The lines of all cases of one picture, which the model sees in one call.

    Raises BadSample for a picture that cannot be read or is not of the size that its annotations say.
    """
    image = load_image(cases[0].image)
    height, width = cases[0].size_hw
    if image.size != (width, height):
        raise BadSample(f"{cases[0].image} is {image.size}, its annotations are for {(width, height)} (width, height)")
    answers = segmenter.segment(image, [case.sentence for case in cases])
    return [
        Line(
            ref_id=case.ref_id,
            sent_id=case.sent_id,
            sentence=case.sentence,
            text=answer.text,
            segmentation=_united(answer.masks, case.size_hw),
        )
        for case, answer in zip(cases, answers, strict=True)
    ]


def score_lines(benchmark: Benchmark, lines: Sequence[Line], min_pixels: int = MIN_PIXELS) -> dict[str, Any]:
    """Scores of lines that stand in case order (see `pixel_sail.metrics`); `unusable` counts annotations left out."""
    score = GeneralizedScore(min_pixels) if benchmark.has_no_target else ReferringScore()
    for case, line in zip(benchmark.cases, lines, strict=True):
        score.update(line["segmentation"], case.mask, case.image_id)
    unusable = {"unusable": len(benchmark.problems)} if benchmark.problems else {}
    return score.result() | unusable


def _united(masks: Sequence[np.ndarray], size_hw: tuple[int, int]) -> RLE | None:
    if not masks:
        return None
    if any(mask.shape != tuple(size_hw) for mask in masks):
        raise ValueError(f"the model gave masks {[mask.shape for mask in masks]} for a picture of {size_hw} pixels")
    return encode_mask(np.logical_or.reduce(masks))
