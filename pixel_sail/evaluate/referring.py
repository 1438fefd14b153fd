"""Referring segmentation (RES, GRES): from the cases of an image to prediction lines, and from lines to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image
from pixel_sail.data.masks import check_rle, encode_mask
from pixel_sail.data.sources import grefer, refer
from pixel_sail.data.sources.cases import Case, read_benchmark
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.evaluate.topics import expression_kinds, topic
from pixel_sail.metrics import THRESHOLDS, DetailScore, GeneralizedScore, ReferringScore, counts_as_empty
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE, BadSample


@dataclass(frozen=True)
class ReferringBenchmark:
    """RES; GRES if `has_no_target`. A line: ref_id, sent_id, segmentation."""

    name: str
    cases: tuple[Case, ...]
    problems: tuple[str, ...]
    has_no_target: bool  # an expression may match nothing
    min_pixels: int = 0  # gRefCOCO: a smaller prediction counts as empty
    kinds: tuple[str, ...] = ()  # of each expression, by sent_id, where the dataset says so
    id_fields: tuple[str, ...] = ("ref_id", "sent_id")
    answer_fields: tuple[str, ...] = ("segmentation",)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str, min_pixels: int = 0) -> ReferringBenchmark:
        """Raises DatasetError for an unknown or unreadable dataset or split."""
        read = read_benchmark(root, name)
        kinds = tuple(expression_kinds(root, name.partition(":")[0]))
        return cls(name, read.cases, read.problems, read.has_no_target, min_pixels, kinds)

    def predict(self, predictor: Predictor, cases: Sequence[Case]) -> list[Line]:
        """The lines of one image, which is encoded once for all its expressions. The masks of an answer are united."""
        answers = predictor.segment(open_image(cases[0].image, cases[0].size_hw), [case.sentence for case in cases])
        return [
            Line(
                ref_id=case.ref_id,
                sent_id=case.sent_id,
                sentence=case.sentence,
                text=answer.text,
                segmentation=union_mask(answer.masks, case.size_hw),
                **score_fields(answer),
            )
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: Case, where: str) -> None:
        check_mask(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of RES or GRES, of boundaries and of small targets; see `pixel_sail.metrics`."""
        score = GeneralizedScore(self.min_pixels) if self.has_no_target else ReferringScore()
        detail, min_pixels = DetailScore(), self.min_pixels if self.has_no_target else 0
        for case, line in zip(self.cases, lines, strict=True):
            predicted = line["segmentation"]
            score.update(predicted, case.mask, case.image_id)
            if case.mask is not None:
                detail.update(None if counts_as_empty(predicted, min_pixels) else predicted, case.mask)
        return with_unusable(score.result() | detail.result(), self.problems)

    def result(self, case: Case, line: Line) -> CaseResult:
        groups = {"expression": self.kinds[case.sent_id] if self.kinds else topic(case.sentence)}
        if self.has_no_target:
            groups["objects meant"] = str(case.targets) if case.targets < 4 else "4 or more"
        return mask_result(
            case.image,
            case.sentence,
            [line["segmentation"]],
            case.mask,
            groups,
            answer=line.get("text", ""),
            min_pixels=self.min_pixels,
        )


DETAILS = (  # of RES and GRES
    Definition(
        ("boundary_iou",),
        "mean IoU of the boundaries, 2 % of the diagonal wide, over the cases with a target",
        "Boundary IoU, arXiv 2103.16562",
    ),
    Definition(
        ("small_ciou", "small_giou"), "cIoU and gIoU of the targets below `small_below` percent of the image", "ours"
    ),
)
DEFINITIONS = (
    Definition(
        ("ciou", "giou", *(f"pr@{threshold}" for threshold in THRESHOLDS)),
        "each sentence is a case; cIoU is the sum of intersections over the sum of unions, gIoU the mean IoU, Pr@X the "
        "share of cases with IoU of X or more; the masks of an answer are united, a missing mask is empty",
        "referring segmentation as in LAVT, arXiv 2112.02244",
        refer.NAMES,
    ),
    Definition(
        ("giou", "ciou", "n_acc", "t_acc"),
        "as in referring segmentation, with cases without a target: IoU 1 if the prediction is empty, else 0, and the "
        "prediction in the union of cIoU; N-acc and T-acc are the shares of cases without and with a target that are "
        "predicted so; a prediction below `min_pixels` counts as empty (0: no such rule, as in the paper)",
        "GRES, arXiv 2306.00968",
        (grefer.NAME,),
    ),
    *DETAILS,
)
BENCHMARK = BenchmarkKind(
    names=kinds.REFERRING,
    open=lambda root, name, options: ReferringBenchmark.read(root, name, options.min_pixels),
    definitions=DEFINITIONS,
)


def open_image(path: Path, size_hw: tuple[int, int], orient: bool = False) -> Image.Image:
    """Loads an image of the size that its annotations say; `orient`: they follow the EXIF rotation.

    Raises BadSample for another size, or an unreadable file.
    """
    image, (height, width) = load_image(path, orient), size_hw
    if image.size != (width, height):
        raise BadSample(f"{path} is {image.size}, its annotations are for {(width, height)} (width, height)")
    return image


def check_mask(rle: Any, size_hw: tuple[int, int], where: str) -> None:
    """Raises BadSample, with a message that begins with `where`, unless `rle` is None or an RLE of the image's size."""
    if rle is not None:
        check_rle(rle, size_hw, where)


def union_mask(masks: Sequence[np.ndarray], size_hw: tuple[int, int]) -> RLE | None:
    """The union of an answer's masks (H, W) bool; None without masks. ValueError if one is not of the image's size."""
    if not masks:
        return None
    if any(mask.shape != tuple(size_hw) for mask in masks):
        raise ValueError(f"the model gave masks {[mask.shape for mask in masks]} for an image of {size_hw} pixels")
    return encode_mask(np.logical_or.reduce(masks))
