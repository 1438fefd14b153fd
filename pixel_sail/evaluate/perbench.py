"""PerBench (Pixel-SAIL, arXiv 2504.10465): captions, multiple choice and segmentation about prompted regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.masks import unite
from pixel_sail.data.options import chosen_letter, parse_options
from pixel_sail.data.sources.perbench import FILES, PerbenchCase, Task, read_perbench
from pixel_sail.evaluate.benchmark import BenchmarkKind, Line, with_unusable
from pixel_sail.evaluate.captions import caption_scores
from pixel_sail.evaluate.referring import check_mask, union_mask
from pixel_sail.evaluate.region import ask_about_regions, check_text
from pixel_sail.evaluate.show import answer_card, mask_row, with_prompts
from pixel_sail.metrics import ReferringScore
from pixel_sail.serve.predictor import Predictor
from pixel_sail.serve.visualize import Card, SheetRow

KIND = "perbench"  # also the folder below the data root
TASKS: tuple[str, ...] = tuple(f"{KIND}:{task}" for task in FILES)
MAX_NEW_TOKENS: dict[Task, int] = {"caption": 256, "mcq": 64, "vtres": 64}


@dataclass(frozen=True)
class PerbenchTask:
    """One of perbench:caption, perbench:mcq and perbench:vtres. A line: id, text, and for vtres segmentation."""

    task: Task
    cases: tuple[PerbenchCase, ...]
    problems: tuple[str, ...]
    id_fields: tuple[str, ...] = ("id",)
    images_per_call: int = 16

    @classmethod
    def read(cls, root: Path, name: str) -> PerbenchTask:
        """Raises DatasetError for an unknown task or an unreadable file."""
        if name not in TASKS:
            raise DatasetError(f"unknown benchmark {name}; the tasks are {', '.join(TASKS)}")
        cases = read_perbench(root / KIND, name.removeprefix(f"{KIND}:"))
        return cls(cases.task, cases.cases, cases.problems)

    @property
    def name(self) -> str:
        return f"{KIND}:{self.task}"

    @property
    def answer_fields(self) -> tuple[str, ...]:
        return ("segmentation",) if self.task == "vtres" else ("text",)

    def predict(self, predictor: Predictor, cases: Sequence[PerbenchCase]) -> list[Line]:
        answers = ask_about_regions(predictor, cases, MAX_NEW_TOKENS[self.task])
        lines = []
        for case, answer in zip(cases, answers, strict=True):
            line = Line(id=case.id, question=case.question, text=answer.text)
            masks = {"segmentation": union_mask(answer.masks, case.size_hw)} if self.task == "vtres" else {}
            lines.append(line | masks)
        return lines

    def check(self, line: Line, case: PerbenchCase, where: str) -> None:
        if self.task == "vtres":
            check_mask(line["segmentation"], case.size_hw, where)
        else:
            check_text(line, where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """caption: meteor; mcq: accuracy, accuracy_substring (as in the research code), unparsed; vtres: ciou, giou."""
        scores = {"caption": _captions, "mcq": _choices, "vtres": _masks}[self.task](self.cases, lines)
        return with_unusable(scores | {"cases": len(self.cases)}, self.problems)

    def show(self, case: PerbenchCase, line: Line) -> SheetRow | Card:
        if self.task != "vtres":
            return answer_card(case, line)
        image, truth = with_prompts(load_image(case.image), case.prompts), unite(case.reference, case.size_hw)
        return mask_row(image, case.question, truth, line["segmentation"])


BENCHMARK = BenchmarkKind(
    prefixes=(KIND,),
    form="perbench[:caption|:mcq|:vtres]",
    help="PerBench: captions, multiple choice and masks about regions; without a task: all three and the overall score",
    open=lambda root, name, options: PerbenchTask.read(root, name),
    tasks=TASKS,
)


def overall(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Mean of METEOR, MCQ accuracy and (cIoU + gIoU) / 2, all in percent; None unless all three tasks have scores."""
    if not set(TASKS) <= set(results):
        return None
    caption, mcq, vtres = (results[name] for name in TASKS)
    parts = [caption["meteor"], mcq["accuracy"], vtres["ciou"], vtres["giou"]]
    if any(part is None for part in parts):
        return None
    return (parts[0] + parts[1] + (parts[2] + parts[3]) / 2) / 3


def _captions(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    return caption_scores([line["text"] for line in lines], [[case.reference] for case in cases])


def _choices(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    letters = [
        chosen_letter(line["text"], parse_options(case.question)) for case, line in zip(cases, lines, strict=True)
    ]
    right = sum(letter == case.reference for letter, case in zip(letters, cases, strict=True))
    contained = sum(case.reference in line["text"] for case, line in zip(cases, lines, strict=True))
    return {
        "accuracy": 100 * right / len(cases) if cases else None,
        "accuracy_substring": 100 * contained / len(cases) if cases else None,
        "unparsed": letters.count(None),
    }


def _masks(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    """The union of the predicted masks of a case against the union of its targets."""
    score = ReferringScore()
    for number, (case, line) in enumerate(zip(cases, lines, strict=True)):
        score.update(line["segmentation"], unite(case.reference, case.size_hw), number)
    result = score.result()
    return {"ciou": result["ciou"], "giou": result["giou"], "pr@0.5": result["pr@0.5"]}
