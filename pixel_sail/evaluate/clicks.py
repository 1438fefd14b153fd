"""Interactive segmentation: how many simulated clicks a mask needs, from a phrase on and by clicks alone."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pixel_sail.data.masks import decode_mask, encode_mask
from pixel_sail.data.next_click import next_click
from pixel_sail.data.sources.cases import Case, read_benchmark
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, with_unusable
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.referring import check_mask, open_image
from pixel_sail.evaluate.topics import topic
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.session import Session, refuse_without_clicks
from pixel_sail.tokens import CLICK
from pixel_sail.types import BadSample, Turn

MAX_CLICKS = 20  # as in f-BRS and RITM
GOALS = (80, 90)  # percent of IoU
AFTER = (1, 3, 5)  # clicks after which the IoU is reported
DIGITS = 5  # of an IoU
STARTS = ("phrase", "clicks")  # the fields of a line begin with them


@dataclass
class Run:
    """One target, the mask so far, and the clicks that led to it."""

    truth: np.ndarray  # (H, W) bool
    turns: tuple[Turn, ...]
    mask: np.ndarray
    ious: list[float] = field(default_factory=list)
    clicked: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.clicked = np.zeros(self.truth.shape, dtype=bool)

    def click(self) -> bool:
        """Adds the next click on the mask, to be answered. False where nothing is left to click on, or to gain."""
        clicks = sum(len(turn.clicks) for turn in self.turns)
        if clicks == MAX_CLICKS or (self.ious and self.ious[-1] >= max(GOALS) / 100):
            return False
        click = next_click(self.mask, self.truth, self.clicked)
        if click is None:
            return False
        self.clicked[int(click.y), int(click.x)] = True
        self.turns = (*self.turns, Turn(CLICK, "", (click,)))
        return True

    def answered(self, text: str, mask: np.ndarray) -> None:
        """Notes the answer to the last turn."""
        self.turns = (*self.turns[:-1], replace(self.turns[-1], answer=text))
        self.mask = mask
        both, either = (mask & self.truth).sum(), (mask | self.truth).sum()
        self.ious.append(round(float(both / either), DIGITS))

    def fields(self, start: str) -> dict[str, Any]:
        """What a line holds of the run: the IoUs after each answer, and the clicks."""
        clicks = [[click.x, click.y, click.positive] for turn in self.turns for click in turn.clicks]
        return {f"{start}_ious": self.ious, f"{start}_clicks": clicks}


def simulate(session: Session, runs: Sequence[Run]) -> None:
    """Clicks on all runs in step, until each has the largest of GOALS, MAX_CLICKS, or no wrong pixel left to click."""
    while going := [run for run in runs if run.click()]:
        for run, answer in zip(going, session.answers([run.turns for run in going]), strict=True):
            run.answered(answer.text, _united(answer.masks, run.truth.shape))


@dataclass(frozen=True)
class ClickBenchmark:
    """The first sentence of each ref of a referring split. A line: ref_id, sent_id, and the fields of two runs."""

    name: str
    cases: tuple[Case, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("ref_id", "sent_id")
    answer_fields: tuple[str, ...] = tuple(f"{start}_ious" for start in STARTS)
    images_per_call: int = 1

    @classmethod
    def read(cls, root: Path, name: str) -> ClickBenchmark:
        """`name`: see BENCHMARK. Raises DatasetError for an unknown or unreadable dataset or split."""
        read = read_benchmark(root, name.partition(":")[2])
        first: dict[int, Case] = {}
        for case in read.cases:
            if case.mask is not None:
                first.setdefault(case.ref_id, case)
        return cls(name, tuple(first.values()), read.problems)

    def predict(self, predictor: Predictor, cases: Sequence[Case]) -> list[Line]:
        """The lines of one image, which is read once for all its phrases and clicks. UserError: it takes none."""
        refuse_without_clicks(predictor)
        session = Session(predictor, open_image(cases[0].image, cases[0].size_hw))
        truths = [decode_mask(case.mask) for case in cases]
        questions = predictor.segment_questions([case.sentence for case in cases])
        asked = [(Turn(question, ""),) for question in questions]
        empty = np.zeros(cases[0].size_hw, dtype=bool)
        by_phrase = [Run(truth, turns, empty) for truth, turns in zip(truths, asked, strict=True)]
        for run, answer in zip(by_phrase, session.answers(asked), strict=True):
            run.answered(answer.text, _united(answer.masks, empty.shape))
        by_clicks = [Run(truth, (), empty) for truth in truths]
        for runs in (by_phrase, by_clicks):
            simulate(session, runs)
        return [
            Line(
                ref_id=case.ref_id,
                sent_id=case.sent_id,
                sentence=case.sentence,
                text=phrase.turns[0].answer,
                segmentation=encode_mask(phrase.mask),
                **phrase.fields(STARTS[0]),
                **clicks.fields(STARTS[1]),
            )
            for case, phrase, clicks in zip(cases, by_phrase, by_clicks, strict=True)
        ]

    def check(self, line: Line, case: Case, where: str) -> None:
        for start, most in zip(STARTS, (MAX_CLICKS + 1, MAX_CLICKS), strict=True):
            ious = line[f"{start}_ious"]
            fits = isinstance(ious, list) and 1 <= len(ious) <= most
            if not fits or not all(type(iou) in (int, float) and 0 <= iou <= 1 for iou in ious):
                raise BadSample(
                    f"{where}: {start}_ious is {reprlib.repr(ious)}; expected a list of 1 to {most} IoUs in 0..1, one "
                    "for each answer"
                )
        check_mask(line.get("segmentation"), case.size_hw, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """NoC from the phrase and by clicks alone, how often the goal is missed, and the IoU after some clicks."""
        scores: dict[str, Any] = {}
        for start in STARTS:
            runs, first = [line[f"{start}_ious"] for line in lines], 0 if start == STARTS[0] else 1
            own = "" if start == STARTS[1] else f"{start}_"
            for goal in GOALS:
                needed = [clicks_needed(ious, goal / 100, first) for ious in runs]
                scores[f"{own}noc@{goal}"] = fmean(MAX_CLICKS if n is None else n for n in needed)
                scores[f"{own}missed@{goal}"] = 100 * fmean(n is None for n in needed)
            after = AFTER if first else (0, *AFTER)
            for clicks in after:
                reached = [ious[min(clicks - first, len(ious) - 1)] for ious in runs]
                scores[f"{own}iou_after_{clicks}"] = 100 * fmean(reached)
        return with_unusable(scores | {"cases": len(lines)}, self.problems)

    def result(self, case: Case, line: Line) -> CaseResult:
        groups, text = {"expression": topic(case.sentence)}, line.get("text", "")
        clicks = len(line["phrase_ious"]) - 1
        answer = f"{text} (and {clicks} clicks)" if text else f"{clicks} clicks"
        return mask_result(case.image, case.sentence, [line.get("segmentation")], case.mask, groups, answer=answer)


def clicks_needed(ious: Sequence[float], goal: float, first: int) -> int | None:
    """Clicks until an IoU of `goal` or more; None if it is never reached. `first`: the clicks before the first IoU."""
    return next((clicks for clicks, iou in enumerate(ious, first) if iou >= goal), None)


def _united(masks: Sequence[np.ndarray], size_hw: tuple[int, ...]) -> np.ndarray:
    return np.logical_or.reduce([np.zeros(size_hw, dtype=bool), *masks])


DEFINITIONS = (
    Definition(
        tuple(f"noc@{goal}" for goal in GOALS),
        f"the mean number of clicks, on an image without a mask, until the IoU is 80 % or 90 %; {MAX_CLICKS} if "
        f"{MAX_CLICKS} do not suffice; the next click is the deepest pixel of the deeper error, missed or false",
        "f-BRS, arXiv 2001.10331, and RITM, arXiv 2102.06583",
    ),
    Definition(
        tuple(f"phrase_noc@{goal}" for goal in GOALS),
        "the same clicks on the mask of the phrase, which itself counts as 0 clicks",
        "ours",
    ),
    Definition(
        tuple(f"{own}missed@{goal}" for own in ("", "phrase_") for goal in GOALS),
        f"the share of the cases that {MAX_CLICKS} clicks do not suffice for",
        "ours",
    ),
    Definition(
        (*(f"iou_after_{n}" for n in AFTER), *(f"phrase_iou_after_{n}" for n in (0, *AFTER))),
        "the mean IoU after so many clicks; a case that has reached 90 % before gets no more of them",
        "ours",
    ),
)
BENCHMARK = BenchmarkKind(
    names=kinds.CLICKS,
    open=lambda root, name, options: ClickBenchmark.read(root, name),
    definitions=DEFINITIONS,
)
