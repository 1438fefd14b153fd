"""Which masks belong to which turn: a mask for each [SEG] of the answers, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from pixel_sail.tokens import SEG
from pixel_sail.types import BadSample, Sample, Turn


def turns_with_masks(sample: Sample) -> list[tuple[Turn, range]]:
    """Each turn with the numbers of its masks."""
    ends = list(accumulate((turn.answer.count(SEG) for turn in sample.turns), initial=0))
    return list(zip(sample.turns, map(range, ends, ends[1:]), strict=True))


def with_turns(sample: Sample, turns: Sequence[Turn], masks: Sequence[int]) -> Sample:
    """The sample with these turns alone, whose masks are those of these numbers."""
    images = tuple(sample.image_of_masks[n] for n in masks)
    return replace(
        sample,
        turns=tuple(turns),
        masks=tuple(sample.masks[n] for n in masks),
        mask_images=images if any(images) else (),
    )


def check_one_mask_each(sample: Sample) -> None:
    """Raises BadSample, beginning with the key, unless there is a mask for each [SEG]."""
    segs = sum(turn.answer.count(SEG) for turn in sample.turns)
    if segs != len(sample.masks):
        raise BadSample(f"{sample.key}: its answers have {segs} {SEG} and it has {len(sample.masks)} masks")
