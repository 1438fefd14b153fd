"""Referring segmentation: from the cases of one image to prediction lines, and from the lines to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import check_rle, encode_mask
from pixel_sail.data.sources.cases import Case, read_benchmark
from pixel_sail.evaluate.benchmark import Line, with_unusable
from pixel_sail.metrics import MIN_PIXELS, DetailScore, GeneralizedScore, ReferringScore, counts_as_empty
from pixel_sail.types import RLE, BadSample


class Answer(Protocol):
    text: str
    masks: list[np.ndarray]  # (H, W) bool each, at the image's own size; one for each [SEG] of the text


class Segmenter(Protocol):
    """What scoring asks of a model; `pixel_sail.serve.predictor.Predictor` is one."""

    def segment(self, image: Image.Image, expressions: list[str]) -> Sequence[Answer]: ...


@dataclass(frozen=True)
class ReferringBenchmark:
    """RES, or GRES where nothing may match: dataset:split."""

    name: str
    cases: tuple[Case, ...]
    problems: tuple[str, ...]
    has_no_target: bool
    min_pixels: int = MIN_PIXELS
    id_fields: tuple[str, ...] = ("ref_id", "sent_id")
    answer_fields: tuple[str, ...] = ("segmentation",)
    images_per_call: int = 1  # which is read once for all its expressions

    @classmethod
    def read(cls, root: Path, name: str, min_pixels: int = MIN_PIXELS) -> ReferringBenchmark:
        """Raises DatasetError for an unknown or unreadable dataset or split."""
        found = read_benchmark(root, name)
        return cls(name, found.cases, found.problems, found.has_no_target, min_pixels)

    def predict(self, predictor: Segmenter, cases: Sequence[Case]) -> list[Line]:
        """The image is seen in one call with all its expressions; the masks of an answer are united."""
        answers = predictor.segment(open_image(cases[0].image, cases[0].size_hw), [case.sentence for case in cases])
        return [
            Line(
                ref_id=case.ref_id,
                sent_id=case.sent_id,
                sentence=case.sentence,
                text=answer.text,
                segmentation=united(answer.masks, case.size_hw),
            )
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: Case, where: str) -> None:
        if line["segmentation"] is not None:
            check_rle(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """See `pixel_sail.metrics`: the scores of RES or GRES, and those of boundaries and small targets."""
        score = GeneralizedScore(self.min_pixels) if self.has_no_target else ReferringScore()
        detail, min_pixels = DetailScore(), self.min_pixels if self.has_no_target else 0
        for case, line in zip(self.cases, lines, strict=True):
            predicted = line["segmentation"]
            score.update(predicted, case.mask, case.image_id)
            if case.mask is not None:
                detail.update(None if counts_as_empty(predicted, min_pixels) else predicted, case.mask)
        return with_unusable(score.result() | detail.result(), self.problems)


def open_image(path: Path, size_hw: tuple[int, int]) -> Image.Image:
    """Raises BadSample for an image that cannot be read or is not of the size that its annotations say."""
    image, (height, width) = load_image(path), size_hw
    if image.size != (width, height):
        raise BadSample(f"{path} is {image.size}, its annotations are for {(width, height)} (width, height)")
    return image


def united(masks: Sequence[np.ndarray], size_hw: tuple[int, int]) -> RLE | None:
    """All masks of an answer as one; None without any. ValueError where they are not of the image's size."""
    if not masks:
        return None
    if any(mask.shape != tuple(size_hw) for mask in masks):
        raise ValueError(f"the model gave masks {[mask.shape for mask in masks]} for an image of {size_hw} pixels")
    return encode_mask(np.logical_or.reduce(masks))
