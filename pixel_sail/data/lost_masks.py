"""Masks that have no pixel left at the size at which the model sees the image: what is left of their sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pixel_sail.data.turn_masks import turns_with_masks, with_turns
from pixel_sail.tokens import PHRASE_END, PHRASE_START, SEG
from pixel_sail.types import NoPixels, Sample, Turn

_PHRASE = re.compile(rf"{re.escape(PHRASE_START)} (.*?) {re.escape(PHRASE_END)} {re.escape(SEG)}", re.DOTALL)


def without_lost_masks(sample: Sample, seen: Sequence[bool]) -> tuple[Sample, int]:
    """The sample without the masks that are not `seen`, and how many turns and phrases went with them.

    A phrase of a grounded caption loses its tags and its [SEG]; any other turn is left out with all its masks. Raises
    NoPixels, beginning with the key, if no turn is left.
    """
    if all(seen):
        return sample, 0
    turns, kept, left_out = [], [], 0
    for turn, numbers in turns_with_masks(sample):
        own = [(n, seen[n]) for n in numbers]
        lost = sum(not visible for _, visible in own)
        if lost and (lost == len(own) or len(_PHRASE.findall(turn.answer)) != len(own)):
            left_out += 1
            continue
        left_out += lost
        turns.append(_untagged(turn, iter([visible for _, visible in own])) if lost else turn)
        kept += [n for n, visible in own if visible]
    if not turns:
        raise NoPixels(f"{sample.key}: no turn is left: its masks have no pixel at the size that the model sees")
    return with_turns(sample, turns, kept), left_out


def _untagged(turn: Turn, seen: Iterator[bool]) -> Turn:
    """The turn without the tags of the phrases that are not seen."""
    return replace(turn, answer=_PHRASE.sub(lambda match: match[0] if next(seen) else match[1], turn.answer))
