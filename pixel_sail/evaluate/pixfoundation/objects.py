"""The case of PixFoundation: an image, a multiple-choice question, and the object that the question is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixel_sail.types import RLE


@dataclass(frozen=True)
class PixObject:
    """One row of an annotation. Rows of the same `pair` ask the same about images that differ in the answer.

    Without the file of questions, `question` is "" and `options` is empty: then only masks are scored.
    """

    index: int  # as published, from 1
    image: Path
    size_hw: tuple[int, int]  # pixels of the stored image
    expression: str | None  # refers to the object; None if there is nothing to refer to
    mask_rle: RLE | None  # the united mask, of size_hw; None: the object is absent
    question: str
    options: tuple[str, ...]  # texts without their letters
    answer: str  # letter of the right option: "a", "b", ...; "" without a question
    pair: int  # from 0
    disputed: bool = False  # others find another option right
