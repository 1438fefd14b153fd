"""Which of the masks of an answer's phrases stands for the object: the oracle's choice, and two automatic ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from pixel_sail.data.masks import decode_mask
from pixel_sail.evaluate.pixfoundation.failures import mask_iou
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.serve.visualize import paint
from pixel_sail.studies.attend_segment.generate import Adapter
from pixel_sail.studies.attend_segment.phrase_masks import Record
from pixel_sail.types import RLE

# (image, expression, phrases that have masks) -> the position of the phrase that names the object; None: cannot tell
Choose = Callable[[Image.Image, str, Sequence[Record]], int | None]

MAX_SHOWN = 9  # candidates on one sheet
_TILE_PX = 336
_ASK = (
    "The picture shows {n} numbered copies of one photo. In each copy another region is highlighted. In which copy is "
    "the highlighted region {expression}? Reply with its number only."
)
_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.]*\d)")
_WORD = re.compile(r"[a-z0-9]+")
_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "this", "that", "of", "in", "on", "at", "to", "and", "or", "its", "their", "s")
)


def oracle(record: Record, one: PixObject) -> RLE | None:
    """The mask with the best IoU of all phrases, the first of equals; None where there is no mask or no expression.

    It knows the object, not that there is none: where an expression refers to nothing it still takes a mask.
    """
    if one.expression is None:
        return None
    masks = [mask for phrase in record["phrases"] for mask in phrase["masks"]]
    return max(masks, key=lambda mask: mask_iou(mask, one), default=None)


def automatic(record: Record, image: Image.Image, expression: str | None, choose: Choose) -> tuple[RLE | None, bool]:
    """Of the phrase that `choose` takes the mask that the segmenter scores best; and whether `choose` could not tell.

    Then the words decide. No mask without an expression or where no phrase has one.
    """
    phrases = [phrase for phrase in record["phrases"] if phrase["masks"]]
    if expression is None or not phrases:
        return None, False
    chosen = choose(image, expression, phrases)
    return best_mask(phrases[by_words(image, expression, phrases) if chosen is None else chosen]), chosen is None


def best_mask(phrase: Record) -> RLE:
    """The first of those that the segmenter scores best."""
    scores = phrase["scores"]
    return phrase["masks"][scores.index(max(scores))]


def by_words(_image: Image.Image, expression: str, phrases: Sequence[Record]) -> int:
    """The phrase that shares most words with the expression, the same last word counting most; the first of equals.

    It sees no image, and knows no synonyms: "the animal" is as far from "the dog" as "the sky".
    """
    wanted = _content_words(expression)

    def likeness(phrase: Record) -> float:
        words = _content_words(phrase["text"])
        if not words or not wanted:
            return 0.0
        shared = len(set(words) & set(wanted))
        return 2 * shared / (len(set(words)) + len(set(wanted))) + (words[-1] == wanted[-1])

    return max(range(len(phrases)), key=lambda i: likeness(phrases[i]))


class AskModel:
    """A model sees the candidates, each phrase's best mask, highlighted on numbered copies, and says a number.

    The first `MAX_SHOWN` phrases of the answer are shown. A reply without one usable number decides nothing.
    """

    def __init__(self, adapter: Adapter):
        self._adapter = adapter

    def __call__(self, image: Image.Image, expression: str, phrases: Sequence[Record]) -> int | None:
        """See `Choose`."""
        shown = phrases[:MAX_SHOWN]
        if len(shown) == 1:
            return 0
        prompt = _ASK.format(n=len(shown), expression=expression)
        numbers = {int(n) for n in _NUMBER.findall(self._adapter.answer(sheet(image, shown), prompt, 16).text)}
        number = numbers.pop() if len(numbers) == 1 else 0
        return number - 1 if 1 <= number <= len(shown) else None


def sheet(image: Image.Image, phrases: Sequence[Record]) -> Image.Image:
    """Copies of the image in a grid, numbered from 1, each with one phrase's best mask over it."""
    scale = _TILE_PX / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    columns = math.ceil(math.sqrt(len(phrases)))
    whole = Image.new("RGB", (columns * width, math.ceil(len(phrases) / columns) * height), "white")
    for i, phrase in enumerate(phrases):
        tile = paint(image, [decode_mask(best_mask(phrase))]).resize((width, height))
        ImageDraw.Draw(tile).text((4, 2), str(i + 1), "white", font_size=32, stroke_width=2, stroke_fill="black")
        whole.paste(tile, (i % columns * width, i // columns * height))
    return whole


def _content_words(text: str) -> list[str]:
    """Lower case, in order, without a, the, of and the like; a plural as its singular (cats -> cat)."""
    words = [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]
