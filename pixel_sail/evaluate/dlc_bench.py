"""DLC-Bench (Describe Anything, arXiv 2504.16072): detailed descriptions of regions, which a judge reads.

    <root>/dlc_bench/annotations.json     COCO: images, and annotations with their masks
    <root>/dlc_bench/class_names.json     {id of the annotation: its class}
    <root>/dlc_bench/qa.json              {id: [{question, choices: [[text, points], ...], type}, ...]}
    <root>/dlc_bench/images/*.jpg

The judge reads the description, without the image, and answers multiple-choice questions: first whether the class is
meant, then those of the file, "positive" (what the region has) and "negative" (what it has not). The points of the
choices are in the file. Where the class is not recognized, no question brings more than 0 points.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.sources.coco import CocoInstances, ImageFinder
from pixel_sail.data.sources.entries import member, parse_usable, refuse_nothing, text_member
from pixel_sail.data.templates import DESCRIBE, about
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import (
    BenchmarkKind,
    Definition,
    Line,
    Options,
    check_words,
    side_by_side,
    with_unusable,
)
from pixel_sail.evaluate.captions import without_prompt_name
from pixel_sail.evaluate.case_result import CaseResult
from pixel_sail.evaluate.judged import Request, ask
from pixel_sail.evaluate.region import ask_about_regions
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE, BadSample

KIND = "dlc_bench"
TYPES = ("positive", "negative")
SCORES = ("positive", "negative", "average")
MAX_NEW_TOKENS = 512
MAX_CHOICES = len("ABCDE")
_YES_NO = ("Yes", "No")


@dataclass(frozen=True)
class DlcQuestion:
    text: str
    choices: tuple[str, ...]
    points: tuple[float, ...]  # of each choice
    type: str  # a member of TYPES


@dataclass(frozen=True)
class DlcCase:
    id: str  # of the annotation
    image: Path
    size_hw: tuple[int, int]
    region: RLE
    reply: str  # the class
    questions: tuple[DlcQuestion, ...]
    question: str = about("<Prompt0>", DESCRIBE[0])

    @property
    def prompts(self) -> dict[int, RLE]:
        return {0: self.region}


@dataclass(frozen=True)
class DlcBench:
    """A line: id, text."""

    name: str
    cases: tuple[DlcCase, ...]
    problems: tuple[str, ...]
    options: Options = field(default_factory=Options)
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("text",)
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, name: str, options: Options) -> DlcBench:
        """Raises DatasetError for an unknown name and an unreadable file."""
        if name != KIND:
            raise DatasetError(f"unknown benchmark {name}; it is called {KIND}")
        folder, problems = root / KIND, list[str]()
        instances = CocoInstances.read(folder / "annotations.json")
        classes, qa = (_object(folder / f"{part}.json") for part in ("class_names", "qa"))
        finder = ImageFinder(root, (f"{KIND}/images", *ImageFinder.FOLDERS))
        ids = {str(annotation_id): annotation_id for annotation_id in instances.annotations}

        def case(key: str, where: str) -> DlcCase:
            if key not in ids:
                raise BadSample(f"{where}: no annotation of this id in annotations.json")
            image_id = instances.annotations[ids[key]]["image_id"]
            image = instances.image(image_id)
            return DlcCase(
                id=key,
                image=finder.find(image.file_name, where),
                size_hw=image.size_hw,
                region=instances.mask(ids[key], image_id),
                reply=text_member(classes, key, "class_names.json"),
                questions=_questions(qa[key], where),
            )

        cases = parse_usable(((key, f"qa.json, {key}") for key in qa), case, problems)
        refuse_nothing(cases, folder / "qa.json", problems)
        return cls(name, side_by_side(cases), tuple(problems), options)

    def predict(self, predictor: Predictor, cases: Sequence[DlcCase]) -> list[Line]:
        answers = ask_about_regions(predictor, cases, MAX_NEW_TOKENS)
        return [Line(id=case.id, text=answer.text) for case, answer in zip(cases, answers, strict=True)]

    def check(self, line: Line, case: DlcCase, where: str) -> None:
        check_words(line["text"], where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; `recognized`, `requests`, `unread` (replies that choose nothing) as counts.

        Without replies the scores are None, and `problems` says where the requests are.
        """
        requests = [request for case, line in zip(self.cases, lines, strict=True) for request in _requests(case, line)]
        counts = {"cases": len(self.cases), "requests": len(requests)}
        replies = ask(requests, self.options)
        if isinstance(replies, str):
            nothing = dict.fromkeys(SCORES) | {"problems": dict.fromkeys(SCORES, replies)}
            return with_unusable(nothing | counts, self.problems)
        return with_unusable(_scores(self.cases, requests, replies) | counts, self.problems)

    def result(self, case: DlcCase, line: Line) -> CaseResult:
        return CaseResult(case.image, case.question, line["text"], case.reply, case.prompts)


_PAPER = "Describe Anything, arXiv 2504.16072"
DEFINITIONS = (
    Definition(
        ("positive", "negative"),
        "the mean over regions of the mean points of a region's questions of that type; the file gives points to the "
        "choice that a judge reads in the description; at most 0 a question where the judge does not recognize the "
        "class; the wording of the requests is ours",
        _PAPER,
    ),
    Definition(("average",), "the mean of positive and negative", _PAPER),
)
BENCHMARK = BenchmarkKind(names=kinds.DLC_BENCH, open=DlcBench.read, definitions=DEFINITIONS)


def choice_of(reply: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a judge's reply means; None if none. The rules of the authors' code, in their order:

    it is the choice, "a. <choice>" or its letter; it contains one choice alone; it begins with a letter and a full
    stop; of several choices that it contains, the one that begins last, and of these the longest; it is a part of
    choices, the longest of which counts; it begins with a letter on a line of its own.
    """
    said, texts = reply.strip().lower(), [choice.strip().lower() for choice in choices]
    letters = ascii_uppercase[: len(texts)].lower()
    for index, (letter, text) in enumerate(zip(letters, texts, strict=True)):
        if said in (text, f"{letter}. {text}", letter):
            return index
    within = [index for index, text in enumerate(texts) if text in said]
    if len(within) == 1:
        return within[0]
    if len(said) > 1 and said[0] in letters and said[1] == ".":
        return letters.index(said[0])
    if within:
        return max(within, key=lambda index: (said.index(texts[index]), len(texts[index])))
    around = [index for index, text in enumerate(texts) if said and said in text]
    if around:
        return max(around, key=lambda index: len(texts[index]))
    if len(said) > 1 and said[0] in letters and said[1] == "\n":
        return letters.index(said[0])
    return None


def _object(path: Path) -> Mapping[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DatasetError(f"{path} holds a {type(values).__name__}; expected an object with the ids of annotations")
    return values


def _questions(values: Any, where: str) -> tuple[DlcQuestion, ...]:
    """Raises BadSample."""
    if not isinstance(values, list) or not values:
        raise BadSample(f"{where}: {reprlib.repr(values)}; expected a list of questions")
    questions = tuple(_question(value, f"{where}, question {number}") for number, value in enumerate(values))
    if not any(question.type == "positive" for question in questions):
        raise BadSample(f"{where}: it has no positive question")
    return questions


def _question(value: Any, where: str) -> DlcQuestion:
    choices, kind = member(value, "choices", list, where), member(value, "type", str, where)
    if kind not in TYPES:
        raise BadSample(f"{where}: its 'type' is {kind!r}; expected one of {', '.join(TYPES)}")
    if not 2 <= len(choices) <= MAX_CHOICES or not all(map(_is_choice, choices)):
        raise BadSample(
            f"{where}: its 'choices' are {reprlib.repr(choices)}; expected 2 to {MAX_CHOICES} [text, points]"
        )
    text = member(value, "question", str, where).strip()
    return DlcQuestion(text, tuple(str(said) for said, _ in choices), tuple(points for _, points in choices), kind)


def _is_choice(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    text, points = value
    return isinstance(text, str) and bool(text.strip()) and type(points) in (int, float) and abs(points) < 1e6


def _requests(case: DlcCase, line: Line) -> list[Request]:
    """What a judge is asked about one description: whether the class is meant, then the questions of the file."""
    description = without_prompt_name(line["text"]).strip()
    recognition = f"Could this be of the class {case.reply!r}, or something similar? It need not be named so."
    asked = [(recognition, _YES_NO), *((question.text, question.choices) for question in case.questions)]
    return [
        Request(f"{KIND}/{case.id}/{number}", _prompt(description, text, choices), case.image, (case.region,))
        for number, (text, choices) in enumerate(asked)
    ]


def _prompt(description: str, question: str, choices: Sequence[str]) -> str:
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False))
    return (
        "Below is a description of something in an image. Answer the question after it by what the description says, "
        "and by nothing else. Choose the one option that comes closest, even if the words differ. Reply with that "
        f"option only, without reasons.\n\nDescription:\n{description}\n\nQuestion: {question}\n{lines}"
    )


def _scores(cases: Sequence[DlcCase], requests: Sequence[Request], replies: Sequence[str]) -> dict[str, Any]:
    """Raises DatasetError for a reply to the first question of a region that is neither yes nor no."""
    means: dict[str, list[float]] = {kind: [] for kind in TYPES}  # of each region that has such questions
    recognized = unread = first = 0
    for case in cases:
        own = replies[first : first + 1 + len(case.questions)]
        is_known = choice_of(own[0], _YES_NO)
        if is_known is None:
            raise DatasetError(f"the reply {own[0][:60]!r} to {requests[first].name} is neither Yes nor No")
        first += len(own)
        recognized += is_known == 0
        points: dict[str, list[float]] = {kind: [] for kind in TYPES}
        for question, reply in zip(case.questions, own[1:], strict=True):
            chosen = choice_of(reply, question.choices)
            unread += chosen is None
            worth = 0 if chosen is None else question.points[chosen]
            points[question.type].append(worth if is_known == 0 else min(0, worth))
        for kind in TYPES:
            means[kind] += [fmean(points[kind])] if points[kind] else []
    positive, negative = (100 * fmean(means[kind]) if means[kind] else None for kind in TYPES)
    average = None if positive is None or negative is None else (positive + negative) / 2
    scores = {"positive": positive, "negative": negative, "average": average}
    return scores | {"recognized": recognized, "unread": unread}
