"""Turns about regions of one image, and the Samples made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from pixel_sail.data.masks import area_px
from pixel_sail.data.sources.record import EntrySource
from pixel_sail.tokens import MAX_PROMPTS, prompt_names
from pixel_sail.types import RLE, BadSample, NoPixels, Sample, Turn

T = TypeVar("T")
_PROMPT = re.compile(r"<Prompt(\d+)>")


@dataclass(frozen=True)
class RegionTurn:
    """A turn by itself: its prompts are numbered independently of the other turns of the image."""

    question: str
    answer: str
    prompts: dict[int, RLE] = field(default_factory=dict)  # K of <PromptK> -> its region
    masks: tuple[RLE, ...] = ()  # one for each [SEG] of the answer


@dataclass(frozen=True)
class RegionImage(Generic[T]):
    """An image and what can be asked about it: each item becomes one turn."""

    key: str
    path: Path
    items: tuple[T, ...]


class RegionSource(EntrySource[RegionImage[T]]):
    """Samples of one image each, with up to `count` turns about its regions (see `pixel_sail.data.sources.Source`)."""

    def __init__(
        self,
        images: Sequence[RegionImage[T]],
        problems: list[str],
        count: int,
        ask: Callable[[RegionImage[T], list[T], np.random.Generator], list[RegionTurn]],
    ) -> None:
        """`ask(image, drawn items, rng)` gives one turn per item, in their order; it may raise BadSample.

        Where it raises NoPixels, or gives a turn with an empty mask, the items concerned are left out of the image.
        """
        super().__init__(images, problems)
        self._count = count
        self._ask = ask

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` draws the items without replacement, their order and their wording.

        An item without pixels is replaced by another of the image and counted in `dropped_turns`. Raises BadSample.
        """
        image = self._entries[index]
        items = [image.items[i] for i in rng.permutation(len(image.items))]
        reason = f"{image.key}: no item has pixels"
        try:
            sample = compose(image.key, image.path, self._ask(image, items[: self._count], rng))
            if sample.dropped_turns == 0:
                return sample
        except NoPixels as error:
            reason = str(error)
        usable = [item for item in items if self._has_pixels(image, item)]
        if not usable:
            raise NoPixels(reason)
        sample = compose(image.key, image.path, self._ask(image, usable[: self._count], rng))
        return replace(sample, dropped_turns=len(items) - len(usable))

    def _has_pixels(self, image: RegionImage[T], item: T) -> bool:
        try:
            return not any(map(_empty_part, self._ask(image, [item], np.random.default_rng(0))))
        except NoPixels:
            return False


def compose(key: str, image: Path | None, turns: Sequence[RegionTurn]) -> Sample:
    """One Sample of turns about one image; prompts are numbered from 0 in the order in which they are first named.

    A region that several turns point at becomes one prompt: two equal ones could not both have a patch. A turn that
    would exceed MAX_PROMPTS regions in all is left out; where items are drawn, another draw may include it. One with an
    empty mask or region is left out and counted. Raises BadSample, beginning with `key`, for a name without a region,
    and NoPixels if empty masks leave no turn.
    """
    regions: list[RLE] = []  # regions[K] is that of <PromptK>
    kept: list[Turn] = []
    masks: list[RLE] = []
    reasons: list[str] = []
    for turn in turns:
        if reason := _empty_part(turn):
            reasons.append(reason)
            continue
        wider, renamed = list(regions), {}
        for k in prompt_names(turn.question + turn.answer):
            if k not in turn.prompts:
                raise BadSample(f"{key}: <Prompt{k}> is named, but no such region is drawn")
            if turn.prompts[k] not in wider:
                wider.append(turn.prompts[k])
            renamed[k] = wider.index(turn.prompts[k])
        if len(wider) > MAX_PROMPTS:
            continue
        regions = wider
        masks.extend(turn.masks)
        kept.append(Turn(_rename(turn.question, renamed), _rename(turn.answer, renamed)))
    if reasons and not kept:
        raise NoPixels(f"{key}: {reasons[0]}")
    return Sample(key, image, tuple(kept), tuple(masks), dict(enumerate(regions)), len(reasons))


def _empty_part(turn: RegionTurn) -> str | None:
    """In words, the region or mask of a turn that has no pixel; None if all have some."""
    for k in prompt_names(turn.question + turn.answer):
        if k in turn.prompts and area_px(turn.prompts[k]) == 0:
            return f"the region of <Prompt{k}> is empty"
    return "one of its masks has no pixel" if any(area_px(mask) == 0 for mask in turn.masks) else None


def _rename(text: str, renamed: dict[int, int]) -> str:
    return _PROMPT.sub(lambda match: f"<Prompt{renamed[int(match[1])]}>", text)
