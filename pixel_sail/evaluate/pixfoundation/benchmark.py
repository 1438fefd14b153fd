"""The benchmarks pixmmvp and pixcvbench: questions and masks about the same objects (arXiv 2502.04192).

A line of a predictions file: `index`, `answers`: the reply to each wording of the question, `segmentations`: an RLE of
the image's size or null for each wording of the request. Every line has as many; none, [], where that is not asked.
Our own lines also have what was asked (`questions`, `requests`) and said to the requests (`replies`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import check_rle
from pixel_sail.data.templates import HIDDEN_EXPRESSION
from pixel_sail.evaluate.benchmark import Line, with_unusable
from pixel_sail.evaluate.pixfoundation import pixcvbench, pixmmvp
from pixel_sail.evaluate.pixfoundation.judge import Judge
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.scores import pix_scores
from pixel_sail.evaluate.pixfoundation.templates import (
    NO_EXPRESSION,
    grounding_prompts,
    grounding_templates,
    vqa_prompts,
)
from pixel_sail.evaluate.referring import open_image, united
from pixel_sail.model.generation import Sampling
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.types import BadSample

MAX_NEW_TOKENS = 64
_READERS: dict[str, tuple[Callable[[Path], list[PixObject]], int]] = {
    pixmmvp.KIND: (pixmmvp.read_objects, pixmmvp.PAIR_SIZE),
    pixcvbench.KIND: (pixcvbench.read_objects, pixcvbench.PAIR_SIZE),
}
KINDS = tuple(_READERS)


@dataclass(frozen=True)
class PixBenchmark:
    """pixmmvp or pixcvbench. `cases`: the rows whose images are there; the others are problems."""

    name: str
    cases: tuple[PixObject, ...]
    problems: tuple[str, ...]
    pair_size: int
    judge: Judge | None = None  # asked where an answer chooses no option
    id_fields: tuple[str, ...] = ("index",)
    answer_fields: tuple[str, ...] = ("answers", "segmentations")
    images_per_call: int = 4

    @classmethod
    def read(cls, root: Path, name: str, judge: Judge | None = None) -> PixBenchmark:
        """Raises DatasetError for unreadable files, and where no image is there."""
        read, pair_size = _READERS[name]
        try:
            objects = read(root)
        except BadSample as error:
            raise DatasetError(str(error)) from None
        cases = tuple(one for one in objects if one.image.is_file())
        if not cases:
            raise DatasetError(f"none of the {len(objects)} images of {name} is there; the first is {objects[0].image}")
        missing = tuple(f"{one.index}: no image {one.image}" for one in objects if not one.image.is_file())
        return cls(name, cases, missing, pair_size, judge)

    def predict(self, predictor: Predictor, cases: Sequence[PixObject]) -> list[Line]:
        """An image is read once for all that is asked about it; the masks of a reply are united."""
        own, hidden = predictor.model.config.question, predictor.model.config.hide == "text"
        asked = []
        for case in cases:
            expression = HIDDEN_EXPRESSION if hidden else case.expression or NO_EXPRESSION
            asked.append((vqa_prompts(case), grounding_prompts(expression, grounding_templates(own))))
        chats = [
            Chat(open_image(case.image, case.size_hw), [*questions, *requests])
            for case, (questions, requests) in zip(cases, asked, strict=True)
        ]
        lines = []
        replies = predictor.chat_many(chats, Sampling(MAX_NEW_TOKENS))
        for case, (questions, requests), said in zip(cases, asked, replies, strict=True):
            answers, masks = said[: len(questions)], said[len(questions) :]
            line = Line(index=case.index, answers=[answer.text for answer in answers])
            line["segmentations"] = [united(reply.masks, case.size_hw) for reply in masks]
            line |= {"questions": questions, "requests": requests, "replies": [reply.text for reply in masks]}
            lines.append(line)
        return lines

    def check(self, line: Line, case: PixObject, where: str) -> None:
        answers, masks = line["answers"], line["segmentations"]
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise BadSample(f"{where}: answers is {answers!r}, expected a list of texts, one for each wording")
        if not isinstance(masks, list):
            raise BadSample(f"{where}: segmentations is no list of an RLE or null for each wording")
        for number, rle in enumerate(masks):
            if rle is not None:
                check_rle(rle, case.size_hw, f"{where}, segmentation {number}")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """See `pixel_sail.evaluate.pixfoundation.scores`. Raises DatasetError, and JudgeError of the judge."""
        for field in self.answer_fields:
            counts = sorted({len(line[field]) for line in lines})
            if len(counts) > 1:
                raise DatasetError(f"{self.name}: lines have {counts} {field}; every line needs as many as wordings")
        return with_unusable(pix_scores(self.cases, lines, self.pair_size, self.judge), self.problems)
