"""A case beside what the model answered, and how good that is: what galleries show and reports count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixel_sail.data.masks import area_px, overlap_px, unite
from pixel_sail.metrics import SMALL_SHARE
from pixel_sail.types import RLE

MIN_IOU = 0.5  # from here on, a mask is right
TINY_SHARE = 0.01  # a target of less than this share of the image's pixels is tiny
LARGE_SHARE = 0.1  # one of at least this share is large
SIZES = (
    "nothing there",
    f"tiny (below {TINY_SHARE:.0%})",
    f"small ({TINY_SHARE:.0%} to {SMALL_SHARE:.0%})",
    f"medium ({SMALL_SHARE:.0%} to {LARGE_SHARE:.0%})",
    f"large (from {LARGE_SHARE:.0%})",
)

# What may be wrong with a mask: name -> what it means
FLAWS = {
    "wrong object": "a mask of which less than half lies on the target, and which has an IoU below 0.5",
    "empty mask": "no mask, although something is there",
    "false alarm": "a mask, although nothing is there",
}


@dataclass(frozen=True)
class MaskScore:
    """The overlap of a predicted mask with its target, in pixels of the stored image."""

    intersection_px: int
    union_px: int
    predicted_px: int
    target_px: int  # 0: nothing is there

    @property
    def iou(self) -> float:
        """0..1; where nothing is there, 1 for an empty mask, else 0."""
        if self.target_px == 0:
            return float(self.predicted_px == 0)
        return self.intersection_px / self.union_px

    @property
    def flaw(self) -> str | None:
        """A key of FLAWS; None for a mask that is right, or whose edge alone is wrong."""
        if self.target_px == 0:
            return "false alarm" if self.predicted_px else None
        if self.predicted_px == 0:
            return "empty mask"
        off_target = 2 * self.intersection_px < self.predicted_px
        return "wrong object" if off_target and self.iou < MIN_IOU else None


@dataclass(frozen=True)
class CaseResult:
    """One case. All masks have the size of the stored image (`oriented`: of the image after its EXIF rotation)."""

    image: Path
    question: str  # the expression, or the question
    answer: str = ""  # in the model's words
    right_answer: str = ""  # in words; empty where a mask is asked for
    prompts: Mapping[int, RLE] = field(default_factory=dict)  # K of <PromptK> -> its region
    target: RLE | None = None  # None: nothing is there, or no mask belongs to the case
    masks: tuple[RLE, ...] = ()  # of the answer
    overlap: MaskScore | None = None  # None: no mask is scored
    right: bool | None = None  # None: neither right nor wrong, such as a caption
    groups: Mapping[str, str] = field(default_factory=dict)  # "object size" -> "small": for scores by group
    oriented: bool = False


def mask_result(
    image: Path,
    question: str,
    masks: Sequence[RLE | None],
    target: RLE | None,
    groups: Mapping[str, str],
    *,
    answer: str = "",
    prompts: Mapping[int, RLE] | None = None,
    min_pixels: int = 0,
    oriented: bool = False,
) -> CaseResult:
    """A case that asks for a mask. It is right from an IoU of MIN_IOU on, or if it is empty where nothing is there.

    `masks`: of the answer, of one size; None is no mask. `target`: None where nothing is there. `min_pixels`: see
    `mask_score`. The group "object size" is added.
    """
    predicted = tuple(mask for mask in masks if mask is not None)
    overlap = mask_score(predicted, target, min_pixels)
    return CaseResult(
        image=image,
        question=question,
        answer=answer,
        prompts=prompts or {},
        target=target,
        masks=predicted,
        overlap=overlap,
        right=overlap.iou >= MIN_IOU,
        groups={**groups, "object size": size_group(target)},
        oriented=oriented,
    )


def mask_score(masks: Sequence[RLE], target: RLE | None, min_pixels: int = 0) -> MaskScore:
    """The united `masks` against the target. Fewer than `min_pixels` predicted pixels count as none."""
    predicted = unite(masks, tuple(masks[0]["size"])) if len(masks) > 1 else next(iter(masks), None)
    predicted_px = 0 if predicted is None else area_px(predicted)
    if predicted_px < min_pixels:
        predicted, predicted_px = None, 0
    if target is None:
        return MaskScore(0, predicted_px, predicted_px, 0)
    target_px = area_px(target)
    if predicted is None:
        return MaskScore(0, target_px, 0, target_px)
    return MaskScore(*overlap_px(predicted, target), predicted_px, target_px)


def size_group(target: RLE | None) -> str:
    """The group of a target by its share of the image: a member of SIZES."""
    if target is None:
        return SIZES[0]
    height, width = target["size"]
    share = area_px(target) / (height * width)
    return SIZES[1 + sum(share >= least for least in (TINY_SHARE, SMALL_SHARE, LARGE_SHARE))]
