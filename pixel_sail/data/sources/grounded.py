"""Grounded captions: a caption whose phrases have masks, as one question and `<p> phrase </p> [SEG]` in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixel_sail.data.masks import area_px, from_coco, unite
from pixel_sail.data.sources.entries import refuse_nothing, text_member
from pixel_sail.data.templates import GROUNDED_CAPTION
from pixel_sail.tokens import PHRASE_END, PHRASE_START, SEG
from pixel_sail.types import RLE, BadSample, Sample, Turn


@dataclass(frozen=True, slots=True)
class Phrase:
    text: str
    span: tuple[int, int] | None  # characters of the caption; None: the phrase is not in it
    segmentations: tuple[Any, ...]  # as in the file, one or more: united, and decoded only when they are drawn


@dataclass(frozen=True)
class GroundedImage:
    key: str
    path: Path
    size_hw: tuple[int, int] | None  # pixels; None: the annotations do not say it, and the image's own counts
    caption: str
    phrases: tuple[Phrase, ...]

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels. Raises BadSample for an image that cannot be read."""
        return self.size_hw or image_size(self.path, self.key)

    def mask(self, phrase: Phrase, size_hw: tuple[int, int]) -> RLE:
        """The united mask of a phrase; BadSample where one of its pieces is malformed, or all are empty."""
        where = f"{self.key}: the mask of {phrase.text!r}"
        mask = unite([from_coco(piece, *size_hw, where) for piece in phrase.segmentations], size_hw)
        if area_px(mask) == 0:
            raise BadSample(f"{where} has no pixel")
        return mask


class GroundedSource:
    """Samples of one image with its whole caption each (see `pixel_sail.data.sources.Source`)."""

    def __init__(self, images: list[GroundedImage], problems: list[str], path: Path) -> None:
        """`problems` gets a line for each phrase that has no place in the answer. DatasetError where none has one."""
        self.problems = problems
        disjoint = [replace(image, phrases=trim(image, problems)) for image in images]
        problems += [f"{image.key}: no phrase of its caption has a mask" for image in disjoint if not image.phrases]
        self._images = [image for image in disjoint if image.phrases]
        refuse_nothing(self._images, path, problems)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        return self._images[index].key

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The question is drawn by `rng`. Raises BadSample for a malformed or empty mask: it is decoded only here."""
        image = self._images[index]
        size = image.size()
        masks = tuple(image.mask(phrase, size) for phrase in image.phrases)
        question = GROUNDED_CAPTION[rng.integers(len(GROUNDED_CAPTION))]
        answer = tag(image.caption, [phrase.span for phrase in image.phrases])
        return Sample(image.key, image.path, (Turn(question, answer),), masks)


def tag(caption: str, spans: Sequence[tuple[int, int]]) -> str:
    """ "a cat" -> "<p> a cat </p> [SEG]" at each span of characters; they are disjoint and in order."""
    for start, stop in reversed(spans):
        caption = f"{caption[:start]}{PHRASE_START} {caption[start:stop]} {PHRASE_END} {SEG}{caption[stop:]}"
    return caption


def trim(image: GroundedImage, problems: list[str]) -> tuple[Phrase, ...]:
    """The phrases in the order of the caption, made disjoint: one that runs into the next ends where that begins.

    What has no words left, no mask, or is not in the caption goes into `problems`.
    """
    placed: dict[tuple[int, int], Phrase] = {}
    for phrase in with_masks(image, problems):
        if phrase.span is None:
            problems.append(f"{image.key}: the phrase {phrase.text!r} is not in its caption")
        else:
            placed[phrase.span] = phrase
    order = sorted(placed)
    kept = []
    for number, span in enumerate(order):
        following = order[number + 1][0] if number + 1 < len(order) else len(image.caption)
        text = image.caption[span[0] : min(span[1], following)].strip()
        if text:
            start = image.caption.index(text, span[0])
            kept.append(replace(placed[span], text=text, span=(start, start + len(text))))
        else:
            problems.append(f"{image.key}: overlapping phrases leave no word of {placed[span].text!r}")
    return tuple(kept)


def with_masks(image: GroundedImage, problems: list[str]) -> list[Phrase]:
    """The phrases; those of the same words in the same place are one, with the masks of all ("two men", a mask each).

    One that has no mask goes into `problems`.
    """
    found: dict[Any, Phrase] = {}
    for number, phrase in enumerate(image.phrases):
        if not phrase.segmentations:
            problems.append(f"{image.key}: the phrase {phrase.text!r} has no mask")
            continue
        place = phrase.span or number
        pieces = (*found[place].segmentations, *phrase.segmentations) if place in found else phrase.segmentations
        found[place] = replace(phrase, segmentations=pieces)
    return list(found.values())


def find_phrase(caption: str, phrase: str, start: int = 0) -> tuple[int, int] | None:
    """Where whole words of the caption are the phrase, in any case: the occurrence nearest to `start`."""
    if not phrase:
        return None
    found = re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)
    return min((match.span() for match in found), key=lambda span: abs(span[0] - start), default=None)


def caption_member(entry: Any, where: str) -> str:
    """The `caption` of an entry without quotation marks around it. BadSample for none, and for special tokens in it."""
    caption = text_member(entry, "caption", where).strip('"').strip()
    if not caption:
        raise BadSample(f"{where}: its 'caption' is empty")
    for token in (PHRASE_START, PHRASE_END):
        if token in caption:
            raise BadSample(f"{where}: the caption contains {token}, which we write around its phrases")
    return caption


def image_size(path: Path, where: str) -> tuple[int, int]:
    """(height, width) in pixels from the head of an image file; BadSample, beginning with `where`."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample(f"{where}: cannot read the size of {path}: {error}") from None
