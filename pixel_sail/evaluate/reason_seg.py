"""ReasonSeg (LISA, arXiv 2308.00692): the model is asked the first text of each image; the scores are those of RES.

LISA's tables have phrases (short queries) and sentences (long queries) apart: so do the scores. As there, pixels
that the annotators marked as ignored belong neither to the prediction nor to the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.sources.reason_seg import read_reason_seg, target_and_ignored
from pixel_sail.data.templates import HIDDEN_EXPRESSION, QUESTIONS_REASON, question
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.referring import check_mask, open_image, union_mask
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.metrics import THRESHOLDS, ReferringScore
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE, BadSample

KIND = "reasonseg"


@dataclass(frozen=True)
class ReasonCase:
    id: str  # name of the image without .jpg
    sentence: str
    is_sentence: bool  # a long query; else a phrase (short), segmented as in referring segmentation
    image: Path
    size_hw: tuple[int, int]  # pixels of the image as it is shown, after the EXIF rotation
    mask: RLE
    ignored: RLE


@dataclass(frozen=True)
class ReasonSegBenchmark:
    """A split of ReasonSeg. A line: id, segmentation."""

    name: str
    cases: tuple[ReasonCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("segmentation",)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str) -> ReasonSegBenchmark:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown or unreadable split."""
        split = name.partition(":")[2] or "val"
        problems: list[str] = []
        cases = []
        for image in read_reason_seg(root, split, problems):
            try:
                target, ignored = target_and_ignored(image)
            except BadSample as error:
                problems.append(str(error))
                continue
            size = (target["size"][0], target["size"][1])
            text = image.texts[0]
            cases.append(ReasonCase(image.path.stem, text, image.is_sentence, image.path, size, target, ignored))
        return cls(f"{KIND}:{split}", tuple(cases), tuple(problems))

    def predict(self, predictor: Predictor, cases: Sequence[ReasonCase]) -> list[Line]:
        """A line a case; the masks of an answer are united."""
        lines = []
        for case in cases:
            image = open_image(case.image, case.size_hw, orient=True)
            if case.is_sentence:
                sentence = HIDDEN_EXPRESSION if predictor.model.config.hide == "text" else case.sentence
                (answer,) = predictor.chat(image, [question(sentence, QUESTIONS_REASON[0])])
            else:
                (answer,) = predictor.segment(image, [case.sentence])
            mask = union_mask(answer.masks, case.size_hw)
            line = Line(id=case.id, sentence=case.sentence, text=answer.text, segmentation=mask)
            lines.append(line | score_fields(answer))
        return lines

    def check(self, line: Line, case: ReasonCase, where: str) -> None:
        check_mask(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """See `pixel_sail.metrics.ReferringScore`; gIoU and cIoU also of the short and the long queries alone."""
        score = ReferringScore()
        of_length = {"short": ReferringScore(), "long": ReferringScore()}
        for number, (case, line) in enumerate(zip(self.cases, lines, strict=True)):
            predicted = _without_ignored(line["segmentation"], case)
            for part in (score, of_length["long" if case.is_sentence else "short"]):
                part.update(predicted, case.mask, number)
        parts = {
            f"{length}_{name}": part.result()[name]
            for length, part in of_length.items()
            for name in ("giou", "ciou", "cases")
        }
        return with_unusable(score.result() | parts, self.problems)

    def result(self, case: ReasonCase, line: Line) -> CaseResult:
        groups, text = {"query": "sentence" if case.is_sentence else "phrase"}, line.get("text", "")
        masks = [_without_ignored(line["segmentation"], case)]
        return mask_result(case.image, case.sentence, masks, case.mask, groups, answer=text, oriented=True)


DEFINITIONS = (
    Definition(
        ("giou", "ciou", *(f"pr@{threshold}" for threshold in THRESHOLDS)),
        "one query an image; as in referring segmentation, without the pixels that annotators marked as ignored",
        "LISA, arXiv 2308.00692",
    ),
    Definition(
        ("short_giou", "short_ciou", "long_giou", "long_ciou"),
        "giou and ciou of the phrases (short queries) and of the sentences (long queries) alone",
        "LISA, arXiv 2308.00692",
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.REASON_SEG,
    open=lambda root, name, options: ReasonSegBenchmark.read(root, name),
    definitions=DEFINITIONS,
)


def _without_ignored(mask: RLE | None, case: ReasonCase) -> RLE | None:
    """A predicted mask without the pixels that the annotators marked as ignored."""
    return None if mask is None else encode_mask(decode_mask(mask) & ~decode_mask(case.ignored))
