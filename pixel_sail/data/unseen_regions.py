"""Regions that no patch shows, because smaller ones cover all of theirs: what is left of their sample."""

from __future__ import annotations

from dataclasses import replace

from pixel_sail.data.turn_masks import turns_with_masks, with_turns
from pixel_sail.tokens import prompt_names
from pixel_sail.types import Sample, Turn, UnseenRegion


def without_region(sample: Sample, unseen: UnseenRegion) -> Sample:
    """The sample without a region and the turns that name it, which `dropped_turns` counts.

    Regions that only these turns named go with them, so that their patches are free for others. Raises `unseen` if no
    turn is left.
    """
    left = [(turn, own) for turn, own in turns_with_masks(sample) if unseen.prompt not in _named(turn)]
    if not left:
        raise unseen
    turns = [turn for turn, _ in left]
    before, after = ({k for turn in some for k in _named(turn)} for some in (sample.turns, turns))
    return replace(
        with_turns(sample, turns, [n for _, own in left for n in own]),
        prompts={k: v for k, v in sample.prompts.items() if k != unseen.prompt and (k in after or k not in before)},
        dropped_turns=sample.dropped_turns + len(sample.turns) - len(turns),
    )


def _named(turn: Turn) -> list[int]:
    return prompt_names(turn.question + turn.answer)
