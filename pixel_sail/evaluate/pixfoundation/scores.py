"""The scores of PixFoundation: VQA accuracy A over pairs, grounding mIoU M, and S, their harmonic mean.

With several wordings A and M are the best of them, as in the paper; the mean and the spread (largest minus smallest)
say how much the wording matters. M has three readings: of all images, where neither a mask nor an object is 1;
without those that have no expression (`None`, the absent-object images that the published scripts can leave out);
and of those only whose object has a mask.
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
    """Of one wording."""

    right: list[bool]  # one an image
    accuracy: float | None  # percent of pairs answered right
    accuracy_single: float | None  # percent of images
    undecided: list[dict[str, Any]]  # index, answer: they choose no option and count as wrong
    judged: int  # decided by the judge


def pix_scores(
    objects: Sequence[PixObject], lines: Sequence[dict[str, Any]], pair_size: int, judge: Judge | None
) -> dict[str, Any]:
    """Percentages as floats, None where undefined; `failures`: cell -> pairs of indices; `wordings`: scores of each.

    The cells are of the best wordings of question and request, and are counted where there are both.
    """
    pairs = pairs_of(objects, pair_size)
    vqa = [
        _vqa([line["answers"][t] for line in lines], objects, pairs, judge)
        for t in range(len(lines[0]["answers"]) if lines else 0)
    ]
    grounding = [
        _grounding([line["segmentations"][t] for line in lines], objects)
        for t in range(len(lines[0]["segmentations"]) if lines else 0)
    ]
    best_vqa = _best([(one.accuracy, one.accuracy_single) for one in vqa])  # pairs, and where they tie single images
    best_mask = _best([(one["miou"],) for one in grounding])
    cells: dict[str, list[list[int]]] | None = None
    if vqa and grounding:
        masks = [mask_right(line["segmentations"][best_mask], one) for line, one in zip(lines, objects, strict=True)]
        cells = failure_cells(objects, pairs, vqa[best_vqa].right, masks)
    accuracy = vqa[best_vqa].accuracy if vqa else None
    of_masks = grounding[best_mask] if grounding else dict.fromkeys(("miou", "miou_no_absent", "miou_present"))
    return {
        "score": harmonic(accuracy, of_masks["miou"]),
        "accuracy": accuracy,
        **_sensitivity("accuracy", [one.accuracy for one in vqa]),
        "accuracy_single": vqa[best_vqa].accuracy_single if vqa else None,
        **of_masks,
        **_sensitivity("miou", [one["miou"] for one in grounding]),
        **{cell: None if cells is None else len(cells[cell]) for cell in CELLS},
        "undecided": sum(len(one.undecided) for one in vqa),
        "judged": sum(one.judged for one in vqa),
        "pairs": len(pairs),
        "cases": len(objects),
        "failures": cells,
        "wordings": {
            "vqa": [
                {"accuracy": one.accuracy, "accuracy_single": one.accuracy_single, "undecided": one.undecided}
                for one in vqa
            ],
            "grounding": grounding,
        },
    }


def harmonic(a: float | None, b: float | None) -> float | None:
    """2ab / (a + b); 0 where both are."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0


def _vqa(
    answers: Sequence[str], objects: Sequence[PixObject], pairs: Sequence[Sequence[int]], judge: Judge | None
) -> VqaScore:
    letters, undecided, judged = [], [], 0
    for answer, one in zip(answers, objects, strict=True):
        letter = chosen_option(answer, one.options)
        if letter is None and judge is not None:
            letter = judge.verdict(one.question, one.options, answer)
            judged += letter is not None
        if letter is None:
            undecided.append({"index": one.index, "answer": answer})
        letters.append(letter)
    right = [letter == one.answer for letter, one in zip(letters, objects, strict=True)]
    of_pairs = [all(right[i] for i in members) for members in pairs]
    return VqaScore(right, percent(of_pairs), percent(right), undecided, judged)


def _grounding(masks: Sequence[Any], objects: Sequence[PixObject]) -> dict[str, float | None]:
    ious = [mask_iou(mask, one) for mask, one in zip(masks, objects, strict=True)]
    named = [iou for iou, one in zip(ious, objects, strict=True) if one.expression is not None]
    present = [iou for iou, one in zip(ious, objects, strict=True) if one.mask_rle is not None]
    return {name: _mean(part) for name, part in (("miou", ious), ("miou_no_absent", named), ("miou_present", present))}


def _mean(ious: Sequence[float]) -> float | None:
    return 100 * sum(ious) / len(ious) if ious else None


def _best(values: Sequence[tuple[float | None, ...]]) -> int:
    """Index of the largest, the first of equal ones; what is not defined is the smallest."""
    known = [tuple(-1.0 if part is None else part for part in value) for value in values]
    return max(range(len(known)), key=known.__getitem__, default=0)


def _sensitivity(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        f"{name}_mean": sum(known) / len(known) if known else None,
        f"{name}_spread": max(known) - min(known) if known else None,
    }
