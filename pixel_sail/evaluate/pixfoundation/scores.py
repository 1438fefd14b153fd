"""The scores of PixFoundation: VQA accuracy A over pairs, grounding mIoU M, and their harmonic mean S.

A and M are those of the best wording, as in the paper. The mean and the spread (largest minus smallest) over wordings
show how much the wording matters. M has three variants:

    miou             all images; for an absent object, 1 if the mask is empty, else 0
    miou_no_absent   without images whose expression is `None`, which the published scripts can leave out
    miou_present     only images whose object has a mask

Where the dataset has disputed labels (PixMMVP: 99 and 279), accuracy_undisputed, accuracy_single_undisputed and
score_undisputed are those of the same best wordings without the disputed images and their pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixel_sail.evaluate.pixfoundation.failures import CELLS, failure_cells, mask_iou, mask_right
from pixel_sail.evaluate.pixfoundation.judge import Judge
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.evaluate.pixfoundation.vqa import chosen_option, pairs_of, percent


@dataclass(frozen=True)
class VqaScore:
    """The VQA scores of one wording."""

    right: list[bool]  # one an image
    accuracy: float | None  # percent of pairs answered right
    accuracy_single: float | None  # percent of images
    undecided: list[dict[str, Any]]  # index, answer: answers that choose no option; they count as wrong
    judged: int  # number of answers that the judge decided


def pix_scores(
    cases: Sequence[PixObject], lines: Sequence[dict[str, Any]], pair_size: int, judge: Judge | None
) -> dict[str, Any]:
    """Percentages as floats, None where undefined; `failures`: cell -> pairs of indices; `wordings`: scores of each.

    The cells are those of the best wordings of question and request, and None unless there are both.
    """
    pairs = pairs_of(cases, pair_size)
    vqa = [
        _vqa([line["answers"][t] for line in lines], cases, pairs, judge)
        for t in range(len(lines[0]["answers"]) if lines else 0)
    ]
    grounding = [
        _grounding([line["segmentations"][t] for line in lines], cases)
        for t in range(len(lines[0]["segmentations"]) if lines else 0)
    ]
    best_vqa = _best([(score.accuracy, score.accuracy_single) for score in vqa])  # single images decide a tie
    best_mask = _best([(score["miou"],) for score in grounding])
    cells: dict[str, list[list[int]]] | None = None
    if vqa and grounding:
        masks = [mask_right(line["segmentations"][best_mask], case) for line, case in zip(lines, cases, strict=True)]
        cells = failure_cells(cases, pairs, vqa[best_vqa].right, masks)
    right = vqa[best_vqa].right if vqa else None
    accuracy = vqa[best_vqa].accuracy if vqa else None
    mious = grounding[best_mask] if grounding else dict.fromkeys(("miou", "miou_no_absent", "miou_present"))
    return {
        "score": harmonic(accuracy, mious["miou"]),
        "accuracy": accuracy,
        **_sensitivity("accuracy", [score.accuracy for score in vqa]),
        "accuracy_single": vqa[best_vqa].accuracy_single if vqa else None,
        **_undisputed(cases, pairs, right, mious["miou"]),
        **mious,
        **_sensitivity("miou", [score["miou"] for score in grounding]),
        **{cell: None if cells is None else len(cells[cell]) for cell in CELLS},
        "undecided": sum(len(score.undecided) for score in vqa),
        "judged": sum(score.judged for score in vqa),
        "pairs": len(pairs),
        "cases": len(cases),
        "failures": cells,
        "wordings": {
            "vqa": [
                {"accuracy": score.accuracy, "accuracy_single": score.accuracy_single, "undecided": score.undecided}
                for score in vqa
            ],
            "grounding": grounding,
        },
    }


def _undisputed(
    cases: Sequence[PixObject], pairs: Sequence[Sequence[int]], right: Sequence[bool] | None, miou: float | None
) -> dict[str, float | None]:
    """The scores without disputed labels; empty where no label is disputed. `right`: one an image, None: not asked."""
    if not any(case.disputed for case in cases):
        return {}
    accuracy = single = None
    if right is not None:
        kept = [members for members in pairs if not any(cases[i].disputed for i in members)]
        accuracy = percent([all(right[i] for i in members) for members in kept])
        single = percent([answer for answer, case in zip(right, cases, strict=True) if not case.disputed])
    return {
        "accuracy_undisputed": accuracy,
        "accuracy_single_undisputed": single,
        "score_undisputed": harmonic(accuracy, miou),
    }


def harmonic(a: float | None, b: float | None) -> float | None:
    """2ab / (a + b); 0 if both are 0, None if one is undefined."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0


def _vqa(
    answers: Sequence[str], cases: Sequence[PixObject], pairs: Sequence[Sequence[int]], judge: Judge | None
) -> VqaScore:
    letters, undecided, judged = [], [], 0
    for answer, case in zip(answers, cases, strict=True):
        letter = chosen_option(answer, case.options)
        if letter is None and judge is not None:
            letter = judge.verdict(case.question, case.options, answer)
            judged += letter is not None
        if letter is None:
            undecided.append({"index": case.index, "answer": answer})
        letters.append(letter)
    right = [letter == case.answer for letter, case in zip(letters, cases, strict=True)]
    right_pairs = [all(right[i] for i in members) for members in pairs]
    return VqaScore(right, percent(right_pairs), percent(right), undecided, judged)


def _grounding(masks: Sequence[Any], cases: Sequence[PixObject]) -> dict[str, float | None]:
    ious = [mask_iou(mask, case) for mask, case in zip(masks, cases, strict=True)]
    named = [iou for iou, case in zip(ious, cases, strict=True) if case.expression is not None]
    present = [iou for iou, case in zip(ious, cases, strict=True) if case.mask_rle is not None]
    return {name: _mean(part) for name, part in (("miou", ious), ("miou_no_absent", named), ("miou_present", present))}


def _mean(ious: Sequence[float]) -> float | None:
    return 100 * sum(ious) / len(ious) if ious else None


def _best(values: Sequence[tuple[float | None, ...]]) -> int:
    """Index of the largest value; the first of equal values. None counts as the smallest."""
    known = [tuple(-1.0 if part is None else part for part in value) for value in values]
    return max(range(len(known)), key=known.__getitem__, default=0)


def _sensitivity(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        f"{name}_mean": sum(known) / len(known) if known else None,
        f"{name}_spread": max(known) - min(known) if known else None,
    }
