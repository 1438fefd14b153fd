"""The benchmarks pixmmvp and pixcvbench: questions and masks about the same objects (arXiv 2502.04192).

A line of a predictions file has `index`, `answers` (one to each wording of the question) and `segmentations` (for each
wording of the request an RLE of the image's size, or null). All lines have the same number of each; a list is empty if
the model was not asked. Our own lines also have the prompts (`questions`, `requests`) and the text of the replies to
the requests (`replies`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.templates import HIDDEN_EXPRESSION
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, check_list, check_words, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
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
from pixel_sail.evaluate.pixfoundation.vqa import chosen_option
from pixel_sail.evaluate.pixfoundation.wordings import OWN, Wordings, read_wordings
from pixel_sail.evaluate.referring import check_mask, open_image, union_mask
from pixel_sail.evaluate.topics import topic
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
    """pixmmvp or pixcvbench. `cases`: the rows whose images exist; the other rows are `problems`."""

    name: str
    cases: tuple[PixObject, ...]
    problems: tuple[str, ...]
    pair_size: int
    wordings: Wordings
    judge: Judge | None = None  # asked if an answer chooses no option
    id_fields: tuple[str, ...] = ("index",)
    answer_fields: tuple[str, ...] = ("answers", "segmentations")
    images_per_call: int = 4

    @classmethod
    def read(cls, root: Path, name: str, judge: Judge | None = None) -> PixBenchmark:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown name, unreadable files, and if no image exists."""
        kind, colon, wordings = name.partition(":")
        if kind not in _READERS or (colon and wordings != OWN):
            raise DatasetError(f"unknown benchmark {name}; known are {', '.join(f'{kind}[:{OWN}]' for kind in KINDS)}")
        read_objects, pair_size = _READERS[kind]
        try:
            objects = read_objects(root)
        except BadSample as error:
            raise DatasetError(str(error)) from None
        cases = tuple(case for case in objects if case.image.is_file())
        if not cases:
            raise DatasetError(f"all {len(objects)} images of {name} are missing; the first is {objects[0].image}")
        missing = tuple(f"{case.index}: no image {case.image}" for case in objects if not case.image.is_file())
        return cls(name, cases, missing, pair_size, read_wordings(root, own=wordings == OWN), judge)

    def predict(self, predictor: Predictor, cases: Sequence[PixObject]) -> list[Line]:
        """A line a case. An image is encoded once for all its prompts; the masks of a reply are united."""
        template, hidden = predictor.model.config.question, predictor.model.config.hide == "text"
        prompts = []
        for case in cases:
            expression = HIDDEN_EXPRESSION if hidden else case.expression or NO_EXPRESSION
            requests = self.wordings.requests or grounding_templates(template)
            prompts.append((vqa_prompts(case, self.wordings.questions), grounding_prompts(expression, requests)))
        chats = [
            Chat(open_image(case.image, case.size_hw), [*questions, *requests])
            for case, (questions, requests) in zip(cases, prompts, strict=True)
        ]
        lines = []
        replies_of_cases = predictor.chat_many(chats, replace(predictor.sampling, max_new_tokens=MAX_NEW_TOKENS))
        for case, (questions, requests), replies in zip(cases, prompts, replies_of_cases, strict=True):
            answers, groundings = replies[: len(questions)], replies[len(questions) :]
            line = Line(index=case.index, answers=[answer.text for answer in answers])
            line["segmentations"] = [union_mask(reply.masks, case.size_hw) for reply in groundings]
            line |= {"questions": questions, "requests": requests, "replies": [reply.text for reply in groundings]}
            lines.append(line)
        return lines

    def check(self, line: Line, case: PixObject, where: str) -> None:
        answers, masks = line["answers"], line["segmentations"]
        check_list(answers, f"{where}: answers", "a text for each wording")
        for number, answer in enumerate(answers):
            check_words(answer, f"{where}, answer {number}")
        check_list(masks, f"{where}: segmentations", "an RLE or null for each wording")
        for number, rle in enumerate(masks):
            check_mask(rle, case.size_hw, f"{where}, segmentation {number}")

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """See `pixel_sail.evaluate.pixfoundation.scores`.

        Raises DatasetError if lines differ in their number of answers or masks, JudgeError if the judge fails.
        """
        for field in self.answer_fields:
            counts = sorted({len(line[field]) for line in lines})
            if len(counts) > 1:
                raise DatasetError(
                    f"{self.name}: lines have {counts} {field}; every line needs the same number, one for each wording"
                )
        return with_unusable(pix_scores(self.cases, lines, self.pair_size, self.judge), self.problems)

    def result(self, case: PixObject, line: Line) -> CaseResult:
        """The answer to the first wording, and the mask of the first request; right if both are."""
        answer = next(iter(line["answers"]), "")
        question = f"{case.expression or NO_EXPRESSION}; {case.question}"
        groups = {"question": topic(case.question)}
        masks = line["segmentations"][:1]
        result = mask_result(case.image, question, masks, case.mask_rle, groups, answer=answer)
        right_answer = dict(zip(ascii_lowercase, case.options, strict=False)).get(case.answer, "")
        if not line["answers"]:
            return result
        chosen = chosen_option(answer, case.options) == case.answer
        if not masks:
            return replace(result, right_answer=right_answer, overlap=None, right=chosen)
        return replace(result, right_answer=right_answer, right=bool(result.right and chosen))


_AUTHORS = "PixFoundation, arXiv 2502.04192"
DEFINITIONS = (
    Definition(("score",), "harmonic mean of accuracy and miou", _AUTHORS),
    Definition(
        ("accuracy",),
        "percent of pairs with both questions right (pixcvbench: of questions), of the best wording asked; the option "
        "is read by rules, then by a judge that does not see the right one",
        f"{_AUTHORS}; the reading of options is ours",
    ),
    Definition(("accuracy_single",), "percent of single images, same wording as accuracy", "ours"),
    Definition(
        ("miou",),
        "mean IoU over all images, of the best wording asked; without an object 1 if the mask is empty, else 0",
        _AUTHORS,
    ),
    Definition(
        ("miou_no_absent",),
        "miou without images that have no expression",
        "PixFoundation's scripts, with meta_none.txt",
    ),
    Definition(("miou_present",), "miou of the images with an annotated mask", "ours"),
    Definition(
        ("accuracy_mean", "accuracy_spread", "miou_mean", "miou_spread"),
        "mean over the wordings, and the largest minus the smallest",
        "ours",
    ),
    Definition(
        ("accuracy_undisputed", "accuracy_single_undisputed", "score_undisputed"),
        "without the images whose label is disputed, and without their pairs: 99 and 279 of PixMMVP",
        "ours",
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.PIXFOUNDATION,
    open=lambda root, name, options: PixBenchmark.read(root, name, options.judge),
    definitions=DEFINITIONS,
)
