"""Detailed descriptions: one sentence of 12 to 25 words made of the facts of an object."""

from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import NUMBERS, TEXTURE_PHRASES, pick
from pixel_sail.scenes.types import Name, ObjectFacts, Rng, SceneObject

COUNTS = {0: "none", 1: "one", **NUMBERS, 7: "seven", 8: "eight"}
DIRECTION_PHRASES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_PLACES = {
    "left": ("on the left side of the picture", "in the left half of the picture"),
    "right": ("on the right side of the picture", "in the right half of the picture"),
    "top": ("in the upper half of the picture", "in the upper part of the picture"),
    "bottom": ("in the lower half of the picture", "in the lower part of the picture"),
    "middle": ("in the middle of the picture", "in the center of the picture"),
}
_CORNER = ("in the {} corner of the picture", "at the {} of the picture")


def with_article(text: str) -> str:
    """The noun phrase with its indefinite article."""
    return ("an " if text[0] in "aeiou" else "a ") + text


def name_phrase(name: Name) -> str:
    """ "a red mug"."""
    return with_article(" ".join(name))


def appearance(thing: SceneObject | ObjectFacts, rng: Rng, size: str | None = None) -> str:
    """ "large red mug with stripes"; "plain" is said only of kinds that can have a texture."""
    words = [size or "", thing.colour, thing.kind]
    if thing.texture == "plain":
        words[1] = f"plain {thing.colour}" if KINDS[thing.kind].solid else thing.colour
    elif rng.random() < 0.5:
        words.append(TEXTURE_PHRASES[thing.texture])
    else:
        words[1] = f"{thing.texture} {thing.colour}"
    return " ".join(word for word in words if word)


def describe(image: ImageFacts, facts: ObjectFacts, rng: Rng) -> str:
    """One phrasing of `image.facts(i)`."""
    head = with_article(appearance(facts, rng, facts.size))
    where = pick(rng, _PLACES.get(facts.where, _CORNER)).format(facts.where)
    more = _relation(image, facts.relation) if facts.relation else _count(facts)
    patterns = (
        f"{head} {where}, {more}.",
        f"this is {head} {where}, {more}.",
        f"{where} there is {head}, {more}.",
        f"{head}, {more}, {where}.",
    )
    return capitalized(pick(rng, patterns))


def capitalized(text: str) -> str:
    """The text with its first letter in upper case and the rest unchanged."""
    return text[0].upper() + text[1:]


def _relation(image: ImageFacts, relation: tuple[str, int]) -> str:
    direction, anchor = relation
    return f"{DIRECTION_PHRASES[direction]} {name_phrase(image.names[anchor])}"


def _count(facts: ObjectFacts) -> str:
    kind, count = facts.kind, facts.kind_count
    every = f"the only {kind}" if count == 1 else f"one of the {COUNTS[count]} {KINDS[kind].plural}"
    return f"{every} in the picture"
