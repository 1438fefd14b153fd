"""Grounded captions: the phrases of a caption have masks, and stand as `<p> phrase </p> [SEG]` in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pixel_sail.data.image import image_size
from pixel_sail.data.masks import area_px, from_coco, unite
from pixel_sail.data.sources.entries import refuse_nothing, text_member
from pixel_sail.data.sources.record import EntrySource
from pixel_sail.data.sources.targets import refuse_empty
from pixel_sail.data.templates import GROUNDED_CAPTION
from pixel_sail.tokens import PHRASE_END, PHRASE_START, SEG
from pixel_sail.types import RLE, BadSample, Sample, Turn


@dataclass(frozen=True, slots=True)
class Phrase:
    text: str
    span: tuple[int, int] | None  # characters of the caption; None: it does not contain the phrase
    segmentations: tuple[Any, ...]  # as in the file, to be united: decoded only when they are drawn


@dataclass(frozen=True)
class GroundedImage:
    key: str
    path: Path
    size_hw: tuple[int, int] | None  # pixels; None: not in the annotations, so that of the image file counts
    caption: str
    phrases: tuple[Phrase, ...]

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels. Raises BadSample if the image must be read and cannot be."""
        return self.size_hw or image_size(self.path, self.key)

    def mask(self, phrase: Phrase, size_hw: tuple[int, int]) -> RLE:
        """The united mask of a phrase. Raises BadSample if one of its pieces is malformed, or all are empty."""
        where = f"{self.key}: the mask of {phrase.text!r}"
        mask = unite([from_coco(piece, *size_hw, where) for piece in phrase.segmentations], size_hw)
        if area_px(mask) == 0:
            raise BadSample(f"{where} has no pixel")
        return mask


class GroundedSource(EntrySource[GroundedImage]):
    """Samples of one image and its whole caption (see `pixel_sail.data.sources.Source`)."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`rng` draws the question. Raises BadSample for a malformed or empty mask: masks are decoded only here."""
        image = self._entries[index]
        size = image.size()
        masks = tuple(image.mask(phrase, size) for phrase in image.phrases)
        question = GROUNDED_CAPTION[rng.integers(len(GROUNDED_CAPTION))]
        answer = tag(image.caption, [phrase.span for phrase in image.phrases])
        return Sample(image.key, image.path, (Turn(question, answer),), masks)


def with_disjoint_phrases(images: list[GroundedImage], path: Path, problems: list[str]) -> list[GroundedImage]:
    """The images that keep a phrase; `problems` gets a line for each that is left out. Raises DatasetError for none."""
    disjoint = [replace(image, phrases=trim(image, problems)) for image in images]
    problems += [f"{image.key}: no phrase of its caption has a mask" for image in disjoint if not image.phrases]
    kept = [image for image in disjoint if image.phrases]
    refuse_nothing(kept, path, problems)
    return kept


def tag(caption: str, spans: Sequence[tuple[int, int]]) -> str:
    """ "a cat" -> "<p> a cat </p> [SEG]" at each span of characters; they are disjoint and in order."""
    for start, stop in reversed(spans):
        caption = f"{caption[:start]}{PHRASE_START} {caption[start:stop]} {PHRASE_END} {SEG}{caption[stop:]}"
    return caption


def trim(image: GroundedImage, problems: list[str]) -> tuple[Phrase, ...]:
    """The phrases in the order of the caption, made disjoint: a phrase that overlaps the next ends where that begins.

    A phrase without words left, without a mask, or not in the caption goes into `problems`.
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
    """The phrases. Those at the same place of the caption become one, with all their masks ("two men": two masks).

    A phrase without a mask that shows something goes into `problems`.
    """
    by_place: dict[Any, Phrase] = {}
    for number, whole in enumerate(image.phrases):
        phrase = _with_visible_pieces(whole, image, problems)
        if not phrase.segmentations:
            problems.append(f"{image.key}: the phrase {phrase.text!r} has no mask")
            continue
        place = phrase.span or number
        earlier = by_place[place].segmentations if place in by_place else ()
        by_place[place] = replace(phrase, segmentations=(*earlier, *phrase.segmentations))
    return list(by_place.values())


def _with_visible_pieces(phrase: Phrase, image: GroundedImage, problems: list[str]) -> Phrase:
    """The phrase without the pieces of its mask that cover no pixel; each goes into `problems`."""
    visible = []
    for piece in phrase.segmentations:
        try:
            refuse_empty(piece, image.size_hw, f"{image.key}: the phrase {phrase.text!r}")
            visible.append(piece)
        except BadSample as error:
            problems.append(str(error))
    return replace(phrase, segmentations=tuple(visible))


def find_phrase(text: str, phrase: str, near: float = 0) -> tuple[int, int] | None:
    """The span (start, stop), in characters, in which whole words of `text` are the phrase, in upper or lower case.

    Of several matches the one that starts nearest to character `near`. None without a match or with an empty phrase.
    """
    words = phrase.strip()
    if not words:
        return None
    matches = re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
    return min((match.span() for match in matches), key=lambda span: abs(span[0] - near), default=None)


def caption_member(entry: Any, where: str) -> str:
    """The `caption` of an entry without quotation marks around it. Raises BadSample if empty or with special tokens."""
    caption = text_member(entry, "caption", where).strip('"').strip()
    if not caption:
        raise BadSample(f"{where}: its 'caption' is empty")
    for token in (PHRASE_START, PHRASE_END):
        if token in caption:
            raise BadSample(f"{where}: the caption contains {token}, which we write around its phrases")
    return caption
