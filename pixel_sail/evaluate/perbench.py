"""PerBench (Pixel-SAIL, arXiv 2504.10465): captions, multiple choice and segmentation about prompted regions.

Each task has the score of the paper's authors, which published numbers are, and ours beside it; see DEFINITIONS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.masks import encode_mask, unite
from pixel_sail.data.options import chosen_letter, parse_options
from pixel_sail.data.sources.perbench import FILES, PerbenchCase, Task, read_perbench
from pixel_sail.evaluate import kinds
from pixel_sail.evaluate.benchmark import BenchmarkKind, Definition, Line, check_list, check_words, with_unusable
from pixel_sail.evaluate.captions import as_caption, caption_scores, joined, renamed, without_prompt_name
from pixel_sail.evaluate.case_result import CaseResult, mask_result
from pixel_sail.evaluate.paper_meteor import paper_meteor
from pixel_sail.evaluate.referring import check_mask, union_mask
from pixel_sail.evaluate.region import ask_about_regions
from pixel_sail.evaluate.scored import score_fields
from pixel_sail.evaluate.topics import topic
from pixel_sail.metrics import ReferringScore, overlap
from pixel_sail.serve.predictor import Predictor
from pixel_sail.types import RLE

KIND = "perbench"  # also the folder below the data root
TASKS: tuple[str, ...] = tuple(f"{KIND}:{task}" for task in FILES)
MAX_NEW_TOKENS: dict[Task, int] = {"caption": 256, "mcq": 64, "vtres": 64}


@dataclass(frozen=True)
class PerbenchTask:
    """One of perbench:caption, perbench:mcq and perbench:vtres.

    A line: id, text, and for vtres `segmentation`, the union of the masks, and `segmentations`, the masks in the order
    of the answer. A line without `segmentations` has one mask.
    """

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
            if self.task == "vtres":
                line["segmentation"] = union_mask(answer.masks, case.size_hw)
                line["segmentations"] = [encode_mask(mask) for mask in answer.masks]
                line |= score_fields(answer)
            lines.append(line)
        return lines

    def check(self, line: Line, case: PerbenchCase, where: str) -> None:
        if self.task == "vtres":
            masks = line.get("segmentations", [])
            check_list(masks, f"{where}: segmentations", "the masks of the answer")
            for mask in (line["segmentation"], *masks):
                check_mask(mask, case.size_hw, where)
        else:
            check_words(line["text"], where)

    def score(self, lines: Sequence[Line]) -> dict[str, Any]:
        """The scores of DEFINITIONS; mcq: also `unparsed`, the answers that choose no option."""
        scores = {"caption": _captions, "mcq": _choices, "vtres": _masks}[self.task](self.cases, lines)
        return with_unusable(scores | {"cases": len(self.cases)}, self.problems)

    def result(self, case: PerbenchCase, line: Line) -> CaseResult:
        """vtres as `ciou_union` scores it, mcq as `accuracy_option`; a caption is neither right nor wrong."""
        groups = {} if self.task == "caption" else {"question": topic(case.question)}
        if self.task == "vtres":
            target, masks = unite(case.reference, case.size_hw), [line["segmentation"]]
            text = line.get("text", "")
            return mask_result(case.image, case.question, masks, target, groups, answer=text, prompts=case.prompts)
        right = _chosen(case, line) == case.reference if self.task == "mcq" else None
        return CaseResult(case.image, case.question, line["text"], case.reply, case.prompts, right=right, groups=groups)


_AUTHORS = "Pixel-SAIL's authors, arXiv 2504.10465"
_CAPTION, _MCQ, _VTRES = (TASKS[:1], TASKS[1:2], TASKS[2:])
DEFINITIONS = (
    Definition(
        ("meteor",),
        "METEOR of NLTK on words split at white space, with the prediction in the place of the reference",
        _AUTHORS,
        _CAPTION,
    ),
    Definition(
        ("meteor_coco",), "METEOR 1.5 of pycocoevalcap on PTB tokens", "COCO captions, arXiv 1504.00325", _CAPTION
    ),
    Definition(("accuracy",), "the right answer, as the file writes it, occurs in the raw answer", _AUTHORS, _MCQ),
    Definition(
        ("accuracy_option",), "the option that the answer chooses, by its letter or its text, is right", "ours", _MCQ
    ),
    Definition(
        ("ciou", "giou"),
        "the first mask of the answer against the first target; without a mask nothing is added to the union; gIoU is "
        "divided by the number of all targets",
        _AUTHORS,
        _VTRES,
    ),
    Definition(
        ("ciou_union", "giou_union", "pr@0.5"),
        "all masks of the answer, united, against all targets, united",
        "ours",
        _VTRES,
    ),
    Definition(("overall",), "the mean of meteor, accuracy and (ciou + giou) / 2", _AUTHORS),
    Definition(("overall_ours",), "the mean of meteor_coco, accuracy_option and (ciou_union + giou_union) / 2", "ours"),
)
BENCHMARK = BenchmarkKind(
    names=kinds.PERBENCH,
    open=lambda root, name, options: PerbenchTask.read(root, name),
    definitions=DEFINITIONS,
)


def overall(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None] | None:
    """`overall` and `overall_ours` in percent (see DEFINITIONS), None where a part is; None without all three tasks."""
    if not set(TASKS) <= set(results):
        return None
    caption, mcq, vtres = (results[name] for name in TASKS)
    return {
        "overall": _mean_of_tasks(caption["meteor"], mcq["accuracy"], vtres["ciou"], vtres["giou"]),
        "overall_ours": _mean_of_tasks(
            caption["meteor_coco"], mcq["accuracy_option"], vtres["ciou_union"], vtres["giou_union"]
        ),
    }


def _mean_of_tasks(
    meteor: float | None, accuracy: float | None, ciou: float | None, giou: float | None
) -> float | None:
    if meteor is None or accuracy is None or ciou is None or giou is None:
        return None
    return (meteor + accuracy + (ciou + giou) / 2) / 3


def _captions(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    texts, references = [as_caption(line["text"]) for line in lines], [str(case.reference) for case in cases]
    ours = caption_scores(texts, [[reference] for reference in references])
    return joined(paper_meteor(texts, references), renamed(ours, "_coco"))


def _choices(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    letters = [_chosen(case, line) for case, line in zip(cases, lines, strict=True)]
    right = sum(letter == case.reference for letter, case in zip(letters, cases, strict=True))
    contained = sum(case.answer in line["text"] for case, line in zip(cases, lines, strict=True))
    return {
        "accuracy": 100 * contained / len(cases) if cases else None,
        "accuracy_option": 100 * right / len(cases) if cases else None,
        "unparsed": letters.count(None),
    }


def _chosen(case: PerbenchCase, line: Line) -> str | None:
    """The letter of the option that an answer chooses; None if it chooses none."""
    return chosen_letter(without_prompt_name(line["text"]), parse_options(case.question))


def _masks(cases: Sequence[PerbenchCase], lines: Sequence[Line]) -> dict[str, Any]:
    united = ReferringScore()
    first = _FirstMasks()
    for number, (case, line) in enumerate(zip(cases, lines, strict=True)):
        united.update(line["segmentation"], unite(case.reference, case.size_hw), number)
        masks = line.get("segmentations") or [line["segmentation"]]
        first.update(masks[0], case.reference)
    result = united.result()
    return {
        "ciou": first.ciou(),
        "giou": first.giou(),
        "ciou_union": result["ciou"],
        "giou_union": result["giou"],
        "pr@0.5": result["pr@0.5"],
    }


@dataclass
class _FirstMasks:
    """vtRES as the authors score it: the first mask of each answer against the first target of the file."""

    intersection_px: int = 0
    union_px: int = 0
    iou_sum: float = 0.0
    targets: int = 0

    def update(self, mask: RLE | None, targets: Sequence[RLE]) -> None:
        self.targets += len(targets)
        if mask is None:
            return
        intersection, union = overlap(mask, targets[0])
        self.intersection_px += intersection
        self.union_px += union
        self.iou_sum += intersection / union

    def ciou(self) -> float | None:
        return 100 * self.intersection_px / self.union_px if self.union_px else (0.0 if self.targets else None)

    def giou(self) -> float | None:
        return 100 * self.iou_sum / self.targets if self.targets else None
