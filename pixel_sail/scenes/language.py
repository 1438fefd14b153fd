"""From a query to a phrase: lower case, no final punctuation, several phrasings of each meaning."""

from collections.abc import Sequence
from typing import TypeVar

from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.types import (
    AllQuery,
    Attribute,
    AttributeQuery,
    Filter,
    OrdinalQuery,
    PairQuery,
    PositionQuery,
    Query,
    RelationQuery,
    Rng,
    SizeQuery,
)

T = TypeVar("T")

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
RANKS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
TEXTURE_PHRASES = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
_WHERE = {
    "left": ("{} on the left", "{} on the left side", "{} in the left half", "left {}"),
    "right": ("{} on the right", "{} on the right side", "{} in the right half", "right {}"),
    "top": ("{} at the top", "{} in the upper half", "upper {}", "{} in the upper part of the picture"),
    "bottom": ("{} at the bottom", "{} in the lower half", "lower {}", "{} in the lower part of the picture"),
    "middle": ("{} in the middle", "{} in the center", "middle {}", "{} in the center of the picture"),
    "top left": ("{} in the top left corner", "top left {}", "{} at the top left"),
    "top right": ("{} in the top right corner", "top right {}", "{} at the top right"),
    "bottom left": ("{} in the bottom left corner", "bottom left {}", "{} at the bottom left"),
    "bottom right": ("{} in the bottom right corner", "bottom right {}", "{} at the bottom right"),
}
_EXTREME = {
    "left": ("leftmost {}", "{} furthest to the left", "{} that is furthest left"),
    "right": ("rightmost {}", "{} furthest to the right", "{} that is furthest right"),
    "top": ("topmost {}", "highest {}", "{} that is highest up"),
    "bottom": ("lowest {}", "bottommost {}", "{} that is furthest down"),
}
RELATIONS = {
    "left of": ("{} to the left of {}", "{} left of {}", "{} that is to the left of {}"),
    "right of": ("{} to the right of {}", "{} right of {}", "{} that is to the right of {}"),
    "above": ("{} above {}", "{} that is above {}", "{} higher than {}"),
    "below": ("{} below {}", "{} that is below {}", "{} lower than {}"),
    "nearest to": ("{} nearest to {}", "{} closest to {}", "{} that is nearest to {}"),
}
_ORDINAL = (
    "{rank} {noun} from the {side}",
    "{noun} that is {rank} from the {side}",
    "{rank} {noun} counting from the {side}",
)
_LARGEST = {
    "largest": ("largest {}", "biggest {}", "{} that is the largest", "largest {} in the picture"),
    "smallest": ("smallest {}", "tiniest {}", "{} that is the smallest", "smallest {} in the picture"),
}
_CLASS = {"small": ("small", "little"), "large": ("large", "big")}
_IN_HALF = {"left": "on the left", "right": "on the right", "top": "in the upper half", "bottom": "in the lower half"}
_ADJECTIVES: tuple[Attribute, ...] = ("colour", "texture")


def pick(rng: Rng, options: tuple[T, ...]) -> T:
    return options[rng.integers(len(options))]


def shuffled(rng: Rng, options: Sequence[T]) -> list[T]:
    return [options[i] for i in rng.permutation(len(options))]


def noun(wanted: Filter, rng: Rng, *, plural: bool = False, adjective: str = "") -> str:
    """A filter as a noun phrase without an article: "small striped red mug"."""
    head = _head(wanted, rng, plural)
    words = [wanted.attributes[key] for key in _ADJECTIVES if key in wanted.attributes]
    if rng.random() < 0.5:
        words.reverse()
    return " ".join([adjective, *words, head]).strip()


def _head(wanted: Filter, rng: Rng, plural: bool) -> str:
    if "kind" not in wanted.attributes:
        return pick(rng, ("objects", "things")) if plural else pick(rng, ("object", "thing", "object"))
    kind = KINDS[wanted.attributes["kind"]]
    if kind.synonym and rng.random() < 0.25:
        return kind.synonym + "s" if plural else kind.synonym
    return kind.plural if plural else wanted.attributes["kind"]


def _described(wanted: Filter, rng: Rng) -> str:
    """A noun phrase that may put one attribute after the noun: "mug with stripes", "mug that is red"."""
    adjectives = [key for key in _ADJECTIVES if key in wanted.attributes]
    if not adjectives or rng.random() < 0.6:
        return noun(wanted, rng) + pick(rng, ("", "", "", " in the picture"))
    late = adjectives[rng.integers(len(adjectives))]
    value = wanted.attributes[late]
    rest = noun(Filter({key: word for key, word in wanted.attributes.items() if key != late}), rng)
    return f"{rest} {TEXTURE_PHRASES.get(value) or 'that is ' + value}"


def phrase(query: Query, rng: Rng, count: int = 1) -> str:
    """One phrasing of a query; `count` is the number of objects that it picks (for "the two red mugs").

    Raises ValueError for a type of query that is only asked about regions.
    """
    match query:
        case AllQuery():
            return _several(query, rng, count)
        case PairQuery(filters):
            first, second = (noun(wanted, rng) for wanted in filters)
            return pick(
                rng, (f"the {first} and the {second}", f"{first} and {second}", f"both the {first} and the {second}")
            )
        case AttributeQuery(wanted):
            text = _described(wanted, rng)
        case PositionQuery(wanted, where=str(where)):
            text = pick(rng, _WHERE[where]).format(noun(wanted, rng))
        case PositionQuery(wanted, extreme=str(side)):
            text = pick(rng, _EXTREME[side]).format(noun(wanted, rng))
        case RelationQuery(wanted, relation, anchor):
            text = pick(rng, RELATIONS[relation]).format(noun(wanted, rng), "the " + noun(anchor, rng))
        case OrdinalQuery(wanted, rank, side):
            name = noun(wanted, rng)
            text = pick(rng, _ORDINAL).format(rank=RANKS[rank], noun=name, side=side)
        case SizeQuery(wanted, size_class=str(size_class)):
            text = noun(wanted, rng, adjective=pick(rng, _CLASS[size_class]))
        case SizeQuery(wanted, extreme=str(extreme)):
            text = pick(rng, _LARGEST[extreme]).format(noun(wanted, rng))
        case _:
            raise ValueError(f"no phrasing for {query!r}")
    return text if rng.random() < 0.45 else f"the {text}"


def _several(query: AllQuery, rng: Rng, count: int) -> str:
    many, single = noun(query.filter, rng, plural=True), noun(query.filter, rng)
    options = [f"all {many}", f"all the {many}", f"every {single}", f"each {single}"]
    if count in NUMBERS:
        options += [f"the {NUMBERS[count]} {many}", f"{NUMBERS[count]} {many}"]
    if count == 2:
        options.append(f"both {many}")
    text = pick(rng, tuple(options))
    return f"{text} {_IN_HALF[query.where]}" if query.where else text
