"""From a free answer to the option that it chooses, and from options to accuracy over pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

from pixel_sail.data.options import chosen_letter, stated_letter
from pixel_sail.evaluate.pixfoundation.objects import PixObject
from pixel_sail.tokens import SEG

_NEGATION = re.compile(r"(?i)\b(not|neither|nor|cannot|without)\b|n't\b")
_NO_ANSWER = re.compile(r"(?i)\bno (idea|clue|way of|way to|telling)\b")  # this "no" is not the option No
_MARKED = re.compile(r"\(([a-z])\)|^\s*([a-z])[.):]")  # "(b)" anywhere, "b.", "b)" and "b:" at the start


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """The letter ("a", "b", ...) of the option that a free answer chooses; None if it names none or several.

    The rules are those of `pixel_sail.data.options.chosen_letter` (a letter, then the text of an option), and small
    letters count too. In an answer that denies something ("they are not closed"), an option's text decides nothing,
    unless the answer begins with it ("No, they are not.").
    """
    lettered = dict(zip(ascii_uppercase, options, strict=False))
    text = _MARKED.sub(lambda match: f"({(match[1] or match[2]).upper()})", answer.replace(SEG, " ")).strip()
    if not any(map(_NO_ANSWER.search, options)):
        text = _NO_ANSWER.sub(" ", text).strip()
    letter = stated_letter(text.rstrip("."), lettered) or chosen_letter(text, lettered)
    if letter is None or f"({letter})" in text or not _NEGATION.search(text):
        return letter and letter.lower()
    first = re.compile(rf"{re.escape(lettered[letter])}(?!\w)", re.IGNORECASE)
    denied = _NEGATION.search(lettered[letter]) is None and not first.match(text)
    return None if denied else letter.lower()


def parse_options(text: str) -> tuple[str, ...]:
    """ " (a) Open (b) Closed" -> ("Open", "Closed"); empty unless the letters run a, b, ... from the start."""
    pieces = re.split(r"\(([a-z])\)", text)
    letters, texts = pieces[1::2], tuple(piece.strip() for piece in pieces[2::2])
    in_order = "".join(letters) == ascii_lowercase[: len(letters)]
    return texts if in_order and len(texts) > 1 and all(texts) and not pieces[0].strip() else ()


def pairs_of(cases: Sequence[PixObject], pair_size: int) -> list[list[int]]:
    """Positions in `cases` of the members of each complete pair: one with `pair_size` members."""
    pairs: dict[int, list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        pairs[case.pair].append(position)
    return [members for members in pairs.values() if len(members) == pair_size]


def percent(right: Sequence[bool]) -> float | None:
    """The share of True, in percent; None of an empty sequence."""
    return 100 * sum(right) / len(right) if right else None
