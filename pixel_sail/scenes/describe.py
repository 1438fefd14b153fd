"""Detailed descriptions: one sentence of 12 to 25 words made of the facts of an object."""

from typing import Any

import numpy as np

from pixel_sail.scenes.facts import Name, Picture
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import NUMBERS, WITH, pick

Rng = np.random.Generator

COUNTS = {0: "none", 1: "one", **NUMBERS, 7: "seven", 8: "eight"}
OF = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_PLACES = {
    "left": ("on the left side of the picture", "in the left half of the picture"),
    "right": ("on the right side of the picture", "in the right half of the picture"),
    "top": ("in the upper half of the picture", "in the upper part of the picture"),
    "bottom": ("in the lower half of the picture", "in the lower part of the picture"),
    "middle": ("in the middle of the picture", "in the center of the picture"),
}
_CORNER = ("in the {} corner of the picture", "at the {} of the picture")


def a(text: str) -> str:
    """The noun phrase with its indefinite article."""
    return ("an " if text[0] in "aeiou" else "a ") + text


def named(name: Name) -> str:
    return a(" ".join(name))


def look(thing: dict[str, Any], rng: Rng, size: str | None = None) -> str:
    """ "large red mug with stripes": ``plain`` is said of the kinds that could have a texture."""
    texture, kind = thing["texture"], thing["kind"]
    words = [size or "", thing["colour"], kind]
    if texture == "plain":
        words[1] = f"plain {thing['colour']}" if KINDS[kind].solid else thing["colour"]
    elif rng.random() < 0.5:
        words.append(WITH[texture])
    else:
        words[1] = f"{texture} {thing['colour']}"
    return " ".join(word for word in words if word)


def describe(picture: Picture, facts: dict[str, Any], rng: Rng) -> str:
    """One phrasing of ``image.facts(i)``."""
    head = a(look(facts, rng, facts["size"]))
    where = pick(rng, _PLACES.get(facts["where"], _CORNER)).format(facts["where"])
    more = _relation(picture, facts) if facts["relation"] else _count(facts)
    patterns = (
        f"{head} {where}, {more}.",
        f"this is {head} {where}, {more}.",
        f"{where} there is {head}, {more}.",
        f"{head}, {more}, {where}.",
    )
    text = pick(rng, patterns)
    return text[0].upper() + text[1:]


def _relation(picture: Picture, facts: dict[str, Any]) -> str:
    side, anchor = facts["relation"]
    return f"{OF[side]} {named(picture.names[anchor])}"


def _count(facts: dict[str, Any]) -> str:
    kind, count = facts["kind"], facts["of_kind"]
    every = f"the only {kind}" if count == 1 else f"one of the {COUNTS[count]} {KINDS[kind].plural}"
    return f"{every} in the picture"
