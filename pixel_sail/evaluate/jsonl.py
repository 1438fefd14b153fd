"""A file of your own (docs/jsonl.md), scored as segmentation.

* A case is a question whose answer has one or several [SEG]. It is asked by itself, without the questions before it, in
  the words of the file, with the regions that it names.
* Its target is the union of the answer's masks; the prediction is the union of the masks in the model's answer, and
  empty if that has none.
* gIoU: the mean IoU of the cases. cIoU: the sum of intersections over the sum of unions. Pr@X: the share of cases with
  an IoU of at least X. These are the definitions of referring segmentation (`pixel_sail.metrics.ReferringScore`).
* Questions whose answers have no [SEG] are not scored; `not_scored` is their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import decode_mask, unite
from pixel_sail.data.regions import OnImage, Region
from pixel_sail.data.sources.jsonl import NAME, JsonlEntry, read_jsonl
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.referring import check_mask, open_image, union_mask
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.evaluate.topics import topic
from pixel_sail.metrics import THRESHOLDS, ReferringScore
from pixel_sail.serve.predictor import Chat, Predictor
from pixel_sail.tokens import SEG, prompt_names
from pixel_sail.types import RLE, BadSample

MAX_NEW_TOKENS = 256
DEFINITIONS = (
    Definition(
        ("giou", "ciou", *(f"pr@{threshold}" for threshold in THRESHOLDS)),
        "each question whose answer has a [SEG] is a case, asked alone with the regions that it names; the masks of an "
        "answer are united, a missing mask is empty; gIoU is the mean IoU, cIoU the sum of intersections over that of "
        "unions, Pr@X the share of cases with IoU of X or more; not_scored counts the questions without a [SEG]",
        "ours",
    ),
)


@dataclass(frozen=True)
class JsonlCase:
    line: int  # of the file, from 1
    turn: int  # of the line, from 0
    image: Path  # that the mask is on
    size_hw: tuple[int, int]
    question: str
    prompts: dict[int, RLE]  # K of each <PromptK> in the question -> its region
    mask: RLE
    # of a question about several images: all of them with their sizes, in order, and K -> the number of its region's
    images: tuple[tuple[Path, tuple[int, int]], ...]
    region_images: dict[int, int]


@dataclass(frozen=True)
class JsonlBenchmark:
    """The questions of a file that ask for masks. A line: line, turn, segmentation."""

    name: str
    cases: tuple[JsonlCase, ...]
    problems: tuple[str, ...]
    not_scored: int  # questions without a [SEG] in the answer
    id_fields: tuple[str, ...] = ("line", "turn")
    answer_fields: tuple[str, ...] = ("segmentation",)
    images_per_call: int = 4

    @classmethod
    def read(cls, root: Path, name: str) -> JsonlBenchmark:
        """`name`: see BENCHMARK. Raises DatasetError for a file that cannot be read or has nothing to score."""
        path = _find(root, name.partition(":")[2])
        problems: list[str] = []
        cases: list[JsonlCase] = []
        not_scored = 0
        for entry in read_jsonl(path, problems):
            not_scored += sum(SEG not in turn.answer for turn in entry.turns)
            try:
                cases += _cases(entry)
            except BadSample as error:
                problems.append(str(error))
        if not cases:
            first = f"; first problem: {problems[0]}" if problems else ""
            raise DatasetError(
                f"{path} has nothing to score: {not_scored} questions have no {SEG} in their answers{first}"
            )
        return cls(name, tuple(cases), tuple(problems), not_scored)

    def predict(self, predictor: Predictor, cases: Sequence[JsonlCase]) -> list[Line]:
        """A line a case. Questions about the same regions of an image share its encoding."""
        groups = [list(group) for _, group in groupby(cases, key=lambda case: (case.image, case.images, case.prompts))]
        chats = [
            Chat(
                [open_image(*image) for image in group[0].images],
                [case.question for case in group],
                {k: _region(group[0].region_images.get(k, 0), rle) for k, rle in group[0].prompts.items()},
                masks_on=[path for path, _ in group[0].images].index(group[0].image),
            )
            for group in groups
        ]
        sampling = replace(predictor.sampling, max_new_tokens=MAX_NEW_TOKENS)
        answers = [answer for of_chat in predictor.chat_many(chats, sampling) for answer in of_chat]
        return [
            Line(
                line=case.line,
                turn=case.turn,
                question=case.question,
                text=answer.text,
                segmentation=union_mask(answer.masks, case.size_hw),
                **score_fields(answer),
            )
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: JsonlCase, where: str) -> None:
        check_mask(line["segmentation"], case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """giou, ciou, pr@X as in referring segmentation; `not_scored`: questions without a mask in their answer."""
        score = ReferringScore()
        images = {case.image: number for number, case in enumerate(self.cases)}
        for case, line in zip(self.cases, lines, strict=True):
            score.update(line["segmentation"], case.mask, images[case.image])
        return with_unusable(score.result() | {"not_scored": self.not_scored}, self.problems)

    def result(self, case: JsonlCase, line: Line) -> CaseResult:
        groups, text = {"question": topic(case.question)}, line.get("text", "")
        masks = [line["segmentation"]]
        number = [path for path, _ in case.images].index(case.image)
        prompts = {k: region for k, region in case.prompts.items() if case.region_images.get(k, 0) == number}
        return mask_result(case.image, case.question, masks, case.mask, groups, answer=text, prompts=prompts)


BENCHMARK = BenchmarkKind(
    names=kinds.JSONL,
    open=lambda root, name, options: JsonlBenchmark.read(root, name),
    definitions=DEFINITIONS,
)


def _cases(entry: JsonlEntry) -> list[JsonlCase]:
    """The questions of a line that ask for masks. Raises BadSample as the source does."""
    if not entry.masks:
        return []
    sizes = entry.sizes()
    regions, images = entry.prompts(sizes), tuple(zip(entry.paths, sizes, strict=True))
    cases, first = [], 0
    for number, turn in enumerate(entry.turns):
        count = turn.answer.count(SEG)
        if count:
            shown = {entry.image_of(first + i) for i in range(count)}
            if len(shown) > 1:
                raise BadSample(f"{entry.where}: conversation {number} has masks on several images; one can be scored")
            path, size = images[shown.pop()]
            mask = unite([entry.target(first + i, sizes) for i in range(count)], size)
            named = {k: regions[k] for k in dict.fromkeys(prompt_names(turn.question))}
            place = (entry.line, number, path, size)
            cases.append(JsonlCase(*place, turn.question, named, mask, images, entry.region_images))
        first += count
    return cases


def _region(image: int, rle: RLE) -> Region:
    return OnImage(image, decode_mask(rle)) if image else decode_mask(rle)


def _find(root: Path, file: str) -> Path:
    """The file of a benchmark's name: below the data root, or a path. Raises DatasetError."""
    if not file:
        raise DatasetError(f"unknown benchmark {NAME!r}: write {NAME}:FILE, for example {NAME}:my_data/val.jsonl")
    paths = dict.fromkeys((root / file, Path(file)))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DatasetError(f"no file {' or '.join(map(str, paths))}")
    return path
