"""Choose one of the masks of an answer's phrases for the object: the oracle's choice, and two automatic ones."""

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

# (image, expression, phrases that have masks) -> the index of the phrase that names the object; NONE: no phrase does;
# None: undecided
Choose = Callable[[Image.Image, str, Sequence[Record]], int | None]

NONE = -1
MIN_SIMILARITY = 0.7  # below it, a phrase does not name the object (PixFoundation's change of January 2026)
MAX_SHOWN = 9  # candidates in one image
_TILE_PX = 336
_ASK = (
    "The picture shows {n} numbered copies of one photo. In each copy another region is highlighted. In which copy is "
    "the highlighted region {expression}? Reply with its number only. If it is in none of them, reply NONE."
)
_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.]*\d)")
_NONE = re.compile(r"\bnone\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")
_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "this", "that", "of", "in", "on", "at", "to", "and", "or", "its", "their", "s")
)


def oracle(record: Record, target: PixObject) -> RLE | None:
    """The mask with the best IoU over all phrases, the first of equal ones; None without a mask or an object.

    It knows the object's mask. Where there is none it gives none, as in PixFoundation's protocol of 2026.
    """
    if target.expression is None or target.mask_rle is None:
        return None
    masks = [mask for phrase in record["phrases"] for mask in phrase["masks"]]
    return max(masks, key=lambda mask: mask_iou(mask, target), default=None)


def automatic(record: Record, image: Image.Image, expression: str | None, choose: Choose) -> tuple[RLE | None, bool]:
    """The best scored mask of the phrase that `choose` picks, and whether `choose` was undecided.

    If it was, `by_words` picks. The mask is None without an expression, if no phrase has a mask, and if none is chosen.
    """
    phrases = [phrase for phrase in record["phrases"] if phrase["masks"]]
    if expression is None or not phrases:
        return None, False
    chosen = choose(image, expression, phrases)
    index = by_words(image, expression, phrases) if chosen is None else chosen
    return None if index == NONE else best_mask(phrases[index]), chosen is None


def best_mask(phrase: Record) -> RLE:
    """The mask that the segmenter scores best, the first of equal ones."""
    scores = phrase["scores"]
    return phrase["masks"][scores.index(max(scores))]


def by_words(_image: Image.Image, expression: str, phrases: Sequence[Record]) -> int:
    """The phrase that shares most words with the expression; the same last word counts most. The first of equal ones.

    NONE if the similarity is below MIN_SIMILARITY: the share of common words (Dice), and 1 for the same last word.
    PixFoundation compares vectors of spaCy. Words know no synonyms: "the animal" is as far from "the dog" as "the sky".
    """
    expression_words = _content_words(expression)

    def likeness(phrase: Record) -> tuple[float, bool]:
        words = _content_words(phrase["text"])
        if not words or not expression_words:
            return 0.0, False
        shared = len(set(words) & set(expression_words))
        return 2 * shared / (len(set(words)) + len(set(expression_words))), words[-1] == expression_words[-1]

    dices, same_ends = zip(*(likeness(phrase) for phrase in phrases), strict=True)
    best = max(range(len(phrases)), key=lambda i: dices[i] + same_ends[i])
    return best if max(dices[best], same_ends[best]) >= MIN_SIMILARITY else NONE


class AskModel:
    """Ask a model: it sees numbered copies of the image, each with one phrase's best mask, and replies with a number.

    It is shown the first `MAX_SHOWN` phrases. A reply without a number that says none is NONE; any other reply without
    exactly one valid number is undecided.
    """

    def __init__(self, adapter: Adapter):
        self._adapter = adapter

    def __call__(self, image: Image.Image, expression: str, phrases: Sequence[Record]) -> int | None:
        """See `Choose`."""
        shown = phrases[:MAX_SHOWN]
        prompt = _ASK.format(n=len(shown), expression=expression)
        reply = self._adapter.answer(numbered_copies(image, shown), prompt, 16).text
        numbers = {int(n) for n in _NUMBER.findall(reply)}
        if not numbers and _NONE.search(reply):
            return NONE
        number = numbers.pop() if len(numbers) == 1 else 0
        return number - 1 if 1 <= number <= len(shown) else None


def numbered_copies(image: Image.Image, phrases: Sequence[Record]) -> Image.Image:
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
    """The words in lower case and in order, without function words; plurals become singular (cats -> cat)."""
    words = [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]
