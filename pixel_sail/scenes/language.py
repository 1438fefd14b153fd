"""From a structured query to a phrase: lower case, no final punctuation, several phrasings of each meaning."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.queries import Filter, Query

Rng = np.random.Generator
T = TypeVar("T")

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
RANKS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
WITH = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
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


def pick(rng: Rng, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def shuffled(rng: Rng, options: Sequence[T]) -> list[T]:
    return [options[i] for i in rng.permutation(len(options))]


def noun(wanted: Filter, rng: Rng, *, plural: bool = False, adjective: str = "") -> str:
    """A filter as a noun phrase without an article: "small striped red mug"."""
    head, tail = _head(wanted, rng, plural), ""
    words = [wanted[key] for key in ("colour", "texture") if key in wanted]
    if rng.random() < 0.5:
        words.reverse()
    return " ".join([adjective, *words, head, tail]).strip()


def _head(wanted: Filter, rng: Rng, plural: bool) -> str:
    if "kind" not in wanted:
        return pick(rng, ("objects", "things")) if plural else pick(rng, ("object", "thing", "object"))
    kind = KINDS[wanted["kind"]]
    if kind.synonym and rng.random() < 0.25:
        return kind.synonym + "s" if plural else kind.synonym
    return kind.plural if plural else wanted["kind"]


def _described(wanted: Filter, rng: Rng) -> str:
    """A noun phrase that may put one attribute after the noun: "mug with stripes", "mug that is red"."""
    late = [key for key in ("colour", "texture") if key in wanted]
    if not late or rng.random() < 0.6:
        return noun(wanted, rng) + pick(rng, ("", "", "", " in the picture"))
    key = late[rng.integers(len(late))]
    rest = noun({k: v for k, v in wanted.items() if k != key}, rng)
    return f"{rest} {WITH.get(wanted[key]) or 'that is ' + wanted[key]}"


def phrase(query: Query, rng: Rng, count: int = 1) -> str:
    """One phrasing of a query; ``count`` is the number of objects that it picks (for "the two red mugs")."""
    kind = query["type"]
    if kind == "all":
        return _several(query, rng, count)
    if kind == "pair":
        first, second = (noun(wanted, rng) for wanted in query["filters"])
        return pick(
            rng, (f"the {first} and the {second}", f"{first} and {second}", f"both the {first} and the {second}")
        )
    if kind == "attribute":
        text = _described(query["filter"], rng)
    elif kind == "position" and "where" in query:
        text = pick(rng, _WHERE[query["where"]]).format(noun(query["filter"], rng))
    elif kind == "position":
        text = pick(rng, _EXTREME[query["extreme"]]).format(noun(query["filter"], rng))
    elif kind == "relation":
        text = pick(rng, RELATIONS[query["relation"]]).format(
            noun(query["filter"], rng), "the " + noun(query["anchor"], rng)
        )
    elif kind == "ordinal":
        names = {"rank": RANKS[query["rank"]], "noun": noun(query["filter"], rng), "side": query["from"]}
        text = pick(rng, _ORDINAL).format(**names)
    elif "class" in query:
        text = noun(query["filter"], rng, adjective=pick(rng, _CLASS[query["class"]]))
    else:
        text = pick(rng, _LARGEST[query["extreme"]]).format(noun(query["filter"], rng))
    return text if rng.random() < 0.45 else f"the {text}"


def _several(query: Query, rng: Rng, count: int) -> str:
    wanted = query["filter"]
    many, one = noun(wanted, rng, plural=True), noun(wanted, rng)
    options = [f"all {many}", f"all the {many}", f"every {one}", f"each {one}"]
    if count in NUMBERS:
        options += [f"the {NUMBERS[count]} {many}", f"{NUMBERS[count]} {many}"]
    if count == 2:
        options.append(f"both {many}")
    text = pick(rng, tuple(options))
    if "where" not in query:
        return text
    ends = {"left": "on the left", "right": "on the right", "top": "in the upper half", "bottom": "in the lower half"}
    return f"{text} {ends[query['where']]}"
