"""The place of a phrase in a text."""

from __future__ import annotations

import re


def find_phrase(text: str, phrase: str, near: float = 0) -> tuple[int, int] | None:
    """The span (start, stop), in characters, in which whole words of `text` are the phrase, in upper or lower case.

    Of several matches the one that starts nearest to character `near`. None without a match or with an empty phrase.
    """
    words = phrase.strip()
    if not words:
        return None
    matches = re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
    return min((match.span() for match in matches), key=lambda span: abs(span[0] - near), default=None)
