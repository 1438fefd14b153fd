"""Captions written by a model that saw the region marked in the image: what they say of the marking is taken out.

The region of a sample is not drawn into its image: "the cup highlighted by a yellow edge" is there just a cup.
"""

from __future__ import annotations

import re

_EDGE = r"(?:(?:thin|thick|bright|bold)\s+)?yellow\s+(?:edge|contour|outline)s?"
_BY_EDGE = rf"(?:by|with|in)\s+(?:an?\s+|the\s+)?{_EDGE}"
_HOW = r"(?:highlighted|outlined|marked|surrounded|enclosed|encircled|indicated)"
# In this order: a whole sentence about the marking, a part of a sentence, single words.
_SENTENCE = re.compile(
    rf"(?:^|(?<=[.!?]\s))(?:(?!\b(?:is|are)\b)[^.!?,])*\b(?:is|are)\s+(?:{_HOW}(?:\s+{_BY_EDGE})?|{_BY_EDGE})[.!?]\s*",
    re.I,
)
_CLAUSE = re.compile(
    rf",?\s*(?:\band\s+)?(?:\b(?:which|that)\s+(?:is|are)\s+|\b(?:is|are)\s+(?={_HOW}[^.]*[.,;]))?"
    rf"(?:\b{_HOW}\s+)?\b{_BY_EDGE}(?P<comma>,(?=\s*(?:is|are|has|have|and|with|sits|stands)\b))?",
    re.I,
)
_WORD = re.compile(r"^highlighted\s+(?:is|are)\b|\b(?:(?:that|which)\s+(?:is|are)\s+)?highlighted\b", re.I)
_ARTICLE = re.compile(r"\b(an?)\s+highlighted\s+(\w)", re.I)
_LEFT = re.compile(rf"\b{_EDGE}\b", re.I)


def without_marking(caption: str) -> str:
    """The caption without what it says of the marking, such as "highlighted" and "by a yellow edge".

    Empty if it is about nothing else, or if a mention stays that cannot be taken out of its sentence.
    """
    if "highlight" not in caption.lower() and "yellow" not in caption.lower():
        return caption
    text = _SENTENCE.sub("", caption)
    text = _CLAUSE.sub("", text)
    text = _ARTICLE.sub(_article, text)
    text = _WORD.sub("", text)
    if _LEFT.search(text):
        return ""
    if text == caption:
        return caption
    text = re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s{2,}", " ", text)).strip(" ,;")
    return text[:1].upper() + text[1:] if caption[:1].isupper() else text


def _article(match: re.Match[str]) -> str:
    """ "a highlighted orange" -> "an orange"."""
    article = "an" if match[2].lower() in "aeiou" else "a"
    return f"{article.capitalize() if match[1][0].isupper() else article} {match[2]}"
