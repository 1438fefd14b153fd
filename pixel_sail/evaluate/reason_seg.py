"""ReasonSeg (LISA, arXiv 2308.00692): the first text of each image is asked; gIoU, cIoU and the scores of RES.

As in LISA, pixels that the annotators marked to be ignored count neither for the prediction nor for the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.masks import check_rle, decode_mask, encode_mask
from pixel_sail.data.sources.reason_seg import read_reason_seg, target_and_ignored
from pixel_sail.data.templates import HIDDEN_EXPRESSION, QUESTIONS_REASON, question
from pixel_sail.evaluate.benchmark import Line, with_unusable
from pixel_sail.evaluate.referring import open_image, united
from pixel_sail.metrics import ReferringScore
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE, BadSample

KIND = "reasonseg"


@dataclass(frozen=True)
class ReasonCase:
    id: str  # name of the image without .jpg
    sentence: str
    is_sentence: bool  # else a phrase, asked for as in referring segmentation
    image: Path
    size_hw: tuple[int, int]  # pixels
    mask: RLE
    ignored: RLE


@dataclass(frozen=True)
class ReasonSegBenchmark:
    """reasonseg[:split], val by default. A line: id, segmentation."""

    name: str
    cases: tuple[ReasonCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("segmentation",)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, split: str) -> ReasonSegBenchmark:
        """Raises DatasetError for an unknown or unreadable split."""
        problems: list[str] = []
        cases = []
        for image in read_reason_seg(root, split or "val", problems):
            try:
                target, ignored = target_and_ignored(image)
            except BadSample as error:
                problems.append(str(error))
                continue
            size = (target["size"][0], target["size"][1])
            text = image.texts[0]
            cases.append(ReasonCase(image.path.stem, text, image.is_sentence, image.path, size, target, ignored))
        return cls(f"{KIND}:{split or 'val'}", tuple(cases), tuple(problems))

    def predict(self, predictor: Predictor, cases: Sequence[ReasonCase]) -> list[Line]:
        """The masks of an answer are united."""
        lines = []
        for case in cases:
            image = open_image(case.image, case.size_hw)
            if case.is_sentence:
                asked = HIDDEN_EXPRESSION if predictor.model.config.hide == "text" else case.sentence
                (answer,) = predictor.chat(image, [question(asked, QUESTIONS_REASON[0])])
            else:
                (answer,) = predictor.segment(image, [case.sentence])
            mask = united(answer.masks, case.size_hw)
            lines.append(Line(id=case.id, sentence=case.sentence, text=answer.text, segmentation=mask))
        return lines

    def check(self, line: Line, case: ReasonCase, where: str) -> None:
        if line["segmentation"] is not None:
            check_rle(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """See `pixel_sail.metrics.ReferringScore`."""
        score = ReferringScore()
        for number, (case, line) in enumerate(zip(self.cases, lines, strict=True)):
            predicted = line["segmentation"]
            if predicted is not None:
                predicted = encode_mask(decode_mask(predicted) & ~decode_mask(case.ignored))
            score.update(predicted, case.mask, number)
        return with_unusable(score.result(), self.problems)
