"""GAR-Bench (Grasp Any Region, arXiv 2510.18876): questions and captions about one or several regions.

    <root>/gar_bench/GAR-Bench-VQA.json                  [{image, mask_rles, question, choices, answer, type}]
    <root>/gar_bench/GAR-Bench-Caption-Simple.json       [{image, mask_rles, question, answer}]
    <root>/gar_bench/GAR-Bench-Caption-Detailed.json     [{image, mask_rles, subject_name, object_name, predicate_name}]
    <root>/gar_bench/images/*.png                        `image` is relative to the folder of the files

<PromptK> in a question is the region mask_rles[K]. Captions are read by a judge, which says True or False; see
judged.py.
"""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import area_px
from pixel_sail.data.options import chosen_letter, stated_letter
from pixel_sail.data.sources.coco import ImageFinder
from pixel_sail.data.sources.entries import member, read_entries, sized_mask, text_member
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
from pixel_sail.tokens import MAX_PROMPTS, prompt_names
from pixel_sail.types import RLE, BadSample

KIND = "gar_bench"
FILES = {
    "vqa": "GAR-Bench-VQA.json",
    "simple": "GAR-Bench-Caption-Simple.json",
    "detailed": "GAR-Bench-Caption-Detailed.json",
}
TASKS: tuple[str, ...] = tuple(f"{KIND}:{task}" for task in FILES)
DETAILED = "Describe <Prompt0> in detail. Say how it relates to <Prompt1>, too."
MAX_NEW_TOKENS = {"vqa": 64, "simple": 128, "detailed": 512}
_OPTION = re.compile(r"\(?([A-Z])[).:]+\s*(\S.*)")


@dataclass(frozen=True)
class GarCase:
    id: int  # its place in the file, from 0
    image: Path
    size_hw: tuple[int, int]  # pixels, as the masks say
    question: str  # with <PromptK> in place
    prompts: Mapping[int, RLE]  # K of <PromptK> -> its region
    reply: str  # vqa: the text of the right option; else what a judge looks for
    type: str = ""  # vqa: the kind of question, as the file says
    answer: str = ""  # vqa: the right answer as the file has it
    options: Mapping[str, str] = field(default_factory=dict)  # vqa: letter -> text
    sought: tuple[str, ...] = ()  # detailed: the names of subject, predicate and object


@dataclass(frozen=True)
class GarBench:
    """A line: id, text."""

    task: str
    cases: tuple[GarCase, ...]
    problems: tuple[str, ...]
    options: Options = field(default_factory=Options)
    id_fields: tuple[str, ...] = ("id",)
    answer_fields: tuple[str, ...] = ("text",)
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, name: str, options: Options) -> GarBench:
        """Raises DatasetError for an unknown task and an unreadable file."""
        if name not in TASKS:
            raise DatasetError(f"unknown benchmark {name}; the tasks are {', '.join(TASKS)}")
        task, problems = name.removeprefix(f"{KIND}:"), list[str]()
        path, finder = root / KIND / FILES[task], ImageFinder(root, (KIND, ".", *ImageFinder.FOLDERS))
        parse = {"vqa": _vqa, "simple": _simple, "detailed": _detailed}[task]
        cases = read_entries(path, path.stem, lambda entry, where: _case(entry, finder, parse, where), problems)
        return cls(task, side_by_side(cases), tuple(problems), options)

    @property
    def name(self) -> str:
        return f"{KIND}:{self.task}"

    def predict(self, predictor: Predictor, cases: Sequence[GarCase]) -> list[Line]:
        answers = ask_about_regions(predictor, cases, MAX_NEW_TOKENS[self.task])
        return [
            Line(id=case.id, question=case.question, text=answer.text)
            for case, answer in zip(cases, answers, strict=True)
        ]

    def check(self, line: Line, case: GarCase, where: str) -> None:
        check_words(line["text"], where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; vqa: also `by_type`, and `unparsed`, the answers that choose no option.

        Captions: None without a judge's replies, and `problems` says where the requests are.
        """
        pairs = list(zip(self.cases, lines, strict=True))
        scores = _choices(pairs) if self.task == "vqa" else _judged(pairs, self.task, self.options)
        return with_unusable(scores | {"cases": len(pairs)}, self.problems)

    def result(self, case: GarCase, line: Line) -> CaseResult:
        if self.task != "vqa":
            return CaseResult(case.image, case.question, line["text"], case.reply, case.prompts)
        right, groups = _chosen(case, line) == _letter(case), {"question": case.type}
        return CaseResult(case.image, case.question, line["text"], case.reply, case.prompts, right=right, groups=groups)


_PAPER = "Grasp Any Region, arXiv 2510.18876"
DEFINITIONS = (
    Definition(
        ("accuracy",), "the answer is the right letter, as the file writes it, in either case", _PAPER, TASKS[:1]
    ),
    Definition(
        ("accuracy_option",),
        "vqa: the option that the answer chooses, by its letter or its text, is right",
        "ours",
    ),
    Definition(
        ("accuracy",),
        "share of captions to which a judge replies True: the caption means what the file's answer says (simple), or "
        "names the subject and its relation to the object (detailed); the wording of the requests is ours, and the "
        "judge of --judge-model sees no image",
        _PAPER,
        TASKS[1:],
    ),
)
BENCHMARK = BenchmarkKind(names=kinds.GAR_BENCH, open=GarBench.read, definitions=DEFINITIONS)

Parse = Callable[[Any, str], dict[str, Any]]  # entry, where -> fields of its GarCase


def _case(entry: Any, finder: ImageFinder, parse: Parse, where: str) -> GarCase:
    """Raises BadSample."""
    codes = member(entry, "mask_rles", list, where)
    if not 1 <= len(codes) <= MAX_PROMPTS:
        raise BadSample(f"{where}: it has {len(codes)} regions; expected 1 to {MAX_PROMPTS}")
    regions = [sized_mask(code, f"{where}, region {k}") for k, code in enumerate(codes)]
    if len({tuple(region["size"]) for region in regions}) > 1 or not all(map(area_px, regions)):
        raise BadSample(f"{where}: its regions are of several sizes, or one has no pixel")
    parsed = parse(entry, where)
    named = set(prompt_names(parsed["question"]))
    if named != set(range(len(regions))):
        raise BadSample(f"{where}: its question names the regions {sorted(named)}, and {len(regions)} are given")
    image = finder.find(member(entry, "image", str, where), where)
    size = (regions[0]["size"][0], regions[0]["size"][1])
    return GarCase(int(where.rpartition("/")[2]), image, size, prompts=dict(enumerate(regions)), **parsed)


def _vqa(entry: Any, where: str) -> dict[str, Any]:
    choices, answer = member(entry, "choices", list, where), text_member(entry, "answer", where)
    matches = [_OPTION.fullmatch(choice.strip()) if isinstance(choice, str) else None for choice in choices]
    letters = [match and match[1] for match in matches]
    if len(matches) < 2 or letters != [chr(ord("A") + k) for k in range(len(matches))]:
        raise BadSample(f"{where}: its 'choices' are {reprlib.repr(choices)}; expected 'A. red', 'B. blue', ...")
    options = {match[1]: match[2].strip() for match in matches}
    letter = stated_letter(answer, options)
    if letter is None:
        raise BadSample(f"{where}: its answer {answer!r} is not one of the options {', '.join(options)}")
    lines = "\n".join(f"{key}. {text}" for key, text in options.items())
    return {
        "question": f"{member(entry, 'question', str, where).strip()}\n{lines}",
        "reply": options[letter],
        "type": text_member(entry, "type", where),
        "answer": answer,
        "options": options,
    }


def _simple(entry: Any, where: str) -> dict[str, Any]:
    return {
        "question": member(entry, "question", str, where).strip(),
        "reply": member(entry, "answer", str, where).strip(),
    }


def _detailed(entry: Any, where: str) -> dict[str, Any]:
    names = tuple(text_member(entry, f"{part}_name", where) for part in ("subject", "predicate", "object"))
    return {"question": DETAILED, "reply": " / ".join(names), "sought": names}


def _letter(case: GarCase) -> str | None:
    return stated_letter(case.answer, dict(case.options))


def _chosen(case: GarCase, line: Line) -> str | None:
    """The letter of the option that an answer chooses; None if it chooses none."""
    return chosen_letter(without_prompt_name(line["text"]), dict(case.options))


def _choices(pairs: Sequence[tuple[GarCase, Line]]) -> dict[str, Any]:
    chosen = [_chosen(case, line) for case, line in pairs]
    exact = [line["text"].strip().lower() == case.answer.lower() for case, line in pairs]
    right = [letter == _letter(case) for letter, (case, _) in zip(chosen, pairs, strict=True)]
    types: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for (case, _), *of_case in zip(pairs, exact, right, strict=True):
        types[case.type].append((of_case[0], of_case[1]))
    by_type = {
        name: {
            "accuracy": _percent([one for one, _ in own]),
            "accuracy_option": _percent([other for _, other in own]),
            "cases": len(own),
        }
        for name, own in types.items()
    }
    scores = {"accuracy": _percent(exact), "accuracy_option": _percent(right)}
    return scores | {"unparsed": chosen.count(None), "by_type": by_type}


def _judged(pairs: Sequence[tuple[GarCase, Line]], task: str, options: Options) -> dict[str, Any]:
    """`unread`: replies that are neither True nor False, which count as False."""
    requests = [
        Request(f"{KIND}:{task}/{case.id}", _prompt(case, line, task), case.image, tuple(case.prompts.values()))
        for case, line in pairs
    ]
    replies = ask(requests, options)
    if isinstance(replies, str):
        return {"accuracy": None, "problems": {"accuracy": replies}, "requests": len(requests)}
    said = [reply.strip() for reply in replies]
    unread = sum(reply not in ("True", "False") for reply in said)
    return {"accuracy": _percent([reply == "True" for reply in said]), "requests": len(requests), "unread": unread}


def _prompt(case: GarCase, line: Line, task: str) -> str:
    text = without_prompt_name(line["text"]).strip()
    if task == "simple":
        return (
            f"A question about regions of an image:\n{case.question}\n\nThe right answer:\n{case.reply}\n\n"
            f"The answer to judge:\n{text}\n\nDoes the answer to judge mean the same as the right answer, in whatever "
            "words? Reply with True or False, and nothing else."
        )
    subject, predicate, other = case.sought
    return (
        f"A description of a region of an image:\n{text}\n\nThe region is: {subject}. Another region is: {other}. How "
        f"the first relates to the second: {predicate}.\n\nReply with True if the description mentions {subject}, and "
        f"says in whatever words that it relates so to {other}. Reply with False if it lacks either. Reply with one "
        "word."
    )


def _percent(values: Sequence[bool]) -> float | None:
    return 100 * sum(values) / len(values) if values else None
