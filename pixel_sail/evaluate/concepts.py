"""Concept segmentation: every instance of a category, each with its mask and its score; or that there is none.

The cases are those of the source `concepts`: of each image the categories that are in it, however many objects they
have, and as many that are not, the most confusable ones. A category with a crowd in an image is no case: nobody has
marked its objects one by one.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.masks import check_rle, encode_mask, unite
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.coco_instance import masks_of
from pixel_sail.data.sources.concepts import FILE, NAME, read_concepts
from pixel_sail.data.sources.entries import refuse_nothing
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, check_list, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.instance_scores import AT_50, AT_75, LEAST_SCORE, ConceptF1, Instances, mask_ap
from pixel_sail.evaluate.referring import open_image
from pixel_sail.evaluate.scored import DIGITS
from pixel_sail.serve.predictor import Answer, Predictor
from pixel_sail.types import RLE, BadSample


@dataclass(frozen=True)
class ConceptCase:
    id: str  # "concepts/val/image=12"
    phrase: str
    image: Path
    size_hw: tuple[int, int]  # pixels
    masks: tuple[RLE, ...]  # one for each object, in the order of the file; empty: none is there


@dataclass(frozen=True)
class ConceptBenchmark:
    """The categories of a split. A line: id, phrase, segmentations, and scores of each, if the model gives any."""

    name: str
    cases: tuple[ConceptCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id", "phrase")
    answer_fields: tuple[str, ...] = ("segmentations",)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str) -> ConceptBenchmark:
        """`name`: "concepts:SPLIT". Raises DatasetError for a split that cannot be read."""
        split = name.partition(":")[2] or "val"
        path, problems = FILE.find(root, split), list[str]()
        cases: list[ConceptCase] = []
        for image in read_concepts(path, split, ImageFinder(root), problems):
            for item in image.items:
                try:
                    masks = tuple(masks_of(item.annotations, item.size_hw, image.key))
                except BadSample as error:
                    problems.append(str(error))
                    continue
                cases.append(ConceptCase(image.key, item.names[0], image.path, item.size_hw, masks))
        refuse_nothing(cases, path, problems)
        return cls(f"{NAME}:{split}", tuple(cases), tuple(problems))

    def predict(self, predictor: Predictor, cases: Sequence[ConceptCase]) -> list[Line]:
        """The lines of one image, which is encoded once for all its phrases."""
        image = open_image(cases[0].image, cases[0].size_hw)
        answers = predictor.segment(image, [case.phrase for case in cases], instances=True)
        return [
            Line(
                id=case.id,
                phrase=case.phrase,
                text=answer.text,
                segmentations=[encode_mask(mask) for mask in answer.masks],
                **_scores(answer),
            )
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: ConceptCase, where: str) -> None:
        masks, scores = line["segmentations"], line.get("scores")
        check_list(masks, f"{where}: segmentations", "an RLE for each object")
        for number, rle in enumerate(masks):
            check_rle(rle, case.size_hw, f"{where}, segmentation {number}")
        if scores is None:
            return
        check_list(scores, f"{where}: scores", "a number for each segmentation")
        if len(scores) != len(masks):
            raise BadSample(f"{where}: {len(masks)} segmentations and {len(scores)} scores; one for each, or none")
        for score in scores:
            if type(score) not in (int, float) or not math.isfinite(score):
                raise BadSample(f"{where}: the score {reprlib.repr(score)} is no finite number")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """ap, ap50, ap75, cgf1, pmf1, il_mcc, pmf1_50, cgf1_all_masks in percent; counts of cases and masks."""
        cases = self._instances(lines)
        ap, f1, unfiltered = mask_ap(cases), ConceptF1.of(cases), ConceptF1.of(cases, least_score=-math.inf)
        scores = {
            "ap": None if ap is None else float(ap.mean()),
            "ap50": None if ap is None else float(ap[AT_50]),
            "ap75": None if ap is None else float(ap[AT_75]),
            "cgf1": f1.cgf1,
            "pmf1": f1.pmf1,
            "il_mcc": f1.il_mcc,
            "pmf1_50": f1.pmf1_50,
            "cgf1_all_masks": unfiltered.cgf1,
            "cases": len(cases),
            "absent_cases": sum(not case.truth for case in cases),
            "objects": sum(len(case.truth) for case in cases),
            "masks": sum(len(case.masks) for case in cases),
            "images": len({case.image for case in cases}),
        }
        return with_unusable(scores, self.problems)

    def _instances(self, lines: Sequence[Line]) -> list[Instances]:
        images = {case.id: number for number, case in enumerate(self.cases)}
        categories = {case.phrase: number for number, case in enumerate(self.cases)}
        return [
            Instances(
                images[case.id],
                categories[case.phrase],
                case.size_hw,
                case.masks,
                line["segmentations"],
                [1.0] * len(line["segmentations"]) if line.get("scores") is None else line["scores"],
            )
            for case, line in zip(self.cases, lines, strict=True)
        ]

    def result(self, case: ConceptCase, line: Line) -> CaseResult:
        """All masks of the answer, united, against all objects: what a report counts as right."""
        count = len(case.masks)
        groups = {"objects": str(count) if count < 4 else "4 or more"}
        target = unite(case.masks, case.size_hw) if case.masks else None
        masks = line["segmentations"]
        return mask_result(case.image, case.phrase, masks, target, groups, answer=line.get("text", ""))


SAM_3 = "SAM 3, arXiv 2511.16719"
DEFINITIONS = (
    Definition(
        ("ap", "ap50", "ap75"),
        "COCO's mask AP by pycocotools, the mean over categories and over IoU 0.5 to 0.95, or at 0.5 and 0.75; a "
        "category counts in the images in which it is asked for; masks without scores have the score 1",
        "COCO, arXiv 1405.0312; images of a category as in LVIS, arXiv 1908.03195",
    ),
    Definition(
        ("cgf1", "pmf1", "il_mcc"),
        "cgF1 = pmF1 x IL_MCC. pmF1: where something is there, masks are matched one to one so that the sum of IoUs is "
        "largest; F1 of all masks together, the mean over IoU 0.5 to 0.95. IL_MCC: Matthews correlation of something "
        f"is there and a mask is given, times 100. Masks of a score below {LEAST_SCORE} do not count",
        SAM_3,
    ),
    Definition(("pmf1_50",), "pmF1 at IoU 0.5 alone", SAM_3),
    Definition(("cgf1_all_masks",), "cgF1 of all masks, whatever their scores", "ours"),
)
BENCHMARK = BenchmarkKind(
    names=kinds.CONCEPTS,
    open=lambda root, name, options: ConceptBenchmark.read(root, name),
    definitions=DEFINITIONS,
)


def _scores(answer: Answer) -> dict[str, Any]:
    if answer.scores is None or answer.presence is None:
        return {}
    return {"presence": round(answer.presence, DIGITS), "scores": [round(score, DIGITS) for score in answer.scores]}
