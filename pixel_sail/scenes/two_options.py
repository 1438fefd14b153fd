"""Questions with two options about an image: what PixMMVP asks about a pair, and what `choices` teaches."""

from typing import NamedTuple

import numpy as np

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.describe import COUNTS, a
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import shuffled
from pixel_sail.scenes.queries import Objects

Rng = np.random.Generator

TOPICS = ("colour", "texture", "kind", "side", "presence", "count")
TOTAL = "total"  # about no object, and so without an expression
MIDDLE = (0.42, 0.58)  # of the width: between them nothing is left or right


class Choice(NamedTuple):
    question: str
    options: tuple[str, str]
    right: int  # index of the right option


def question_about(topic: str, name: str, right: str, wrong: str, rng: Rng) -> Choice:
    """``name``: of the thing, its kind or (for the topic kind) its colour; "" for the total."""
    first, second = options = shuffled(rng, (right, wrong))
    asked = {
        "colour": f"What colour is the {name}?",
        "texture": f"Is the {name} {first} or {second}?",
        "kind": f"Is the {name} thing {a(first)} or {a(second)}?",
        "side": f"Is the {name} on the left or on the right of the picture?",
        "presence": f"Can you see {a(name)} in the picture?" if name else "",
        "count": f"Is there one {name}, or are there two?",
        TOTAL: f"Are there {first} or {second} things in the picture?",
    }[topic]
    return Choice(asked, (options[0].capitalize(), options[1].capitalize()), options.index(right))


def choices_about(objects: Objects, width: int, rng: Rng) -> list[Choice]:
    """Up to three questions of different topics about a training image."""
    found = []
    for topic in shuffled(rng, (*TOPICS, TOTAL)):
        facts = _facts(topic, objects, width, rng)
        if facts:
            name, right, wrong = facts[rng.integers(len(facts))]
            found.append(question_about(topic, name, right, wrong, rng))
    return found[:3]


def _facts(topic: str, objects: Objects, width: int, rng: Rng) -> list[tuple[str, str, str]]:
    """(name, what is true, what is not) of all that the topic can be asked about."""
    kinds, colours = ([thing[key] for thing in objects] for key in ("kind", "colour"))
    alone = [thing for thing in objects if kinds.count(thing["kind"]) == 1]
    if topic == "colour":
        return [(one["kind"], one["colour"], other_colour(one["kind"], one["colour"], rng)) for one in alone]
    if topic == "texture":
        textured = [one for one in alone if KINDS[one["kind"]].solid and one["size_class"] != "small"]
        return [(one["kind"], one["texture"], other_texture(one["texture"], rng)) for one in textured]
    if topic == "kind":
        single = [one for one in objects if colours.count(one["colour"]) == 1]
        return [(one["colour"], one["kind"], other_kind(one["kind"], one["colour"], rng)) for one in single]
    if topic == "side":
        sides = [(one["kind"], side_of(one["centroid"][0] / width)) for one in alone]
        return [(kind, side, "right" if side == "left" else "left") for kind, side in sides if side]
    if topic == "presence":
        there, missing = (
            kinds[rng.integers(len(kinds))],
            shuffled(rng, [kind for kind in KINDS if kind not in kinds])[0],
        )
        return [(there, "yes", "no"), (missing, "no", "yes")]
    if topic == "count":
        counted = [(kind, kinds.count(kind)) for kind in sorted(set(kinds))]
        return [(kind, COUNTS[count], COUNTS[3 - count]) for kind, count in counted if count in (1, 2)]
    count = len(objects)
    return [("", COUNTS[count], COUNTS[count - 1 if count == max(COUNTS) or rng.random() < 0.5 else count + 1])]


def side_of(x_share: float) -> str | None:
    """left, right, or None near the middle."""
    return "left" if x_share < MIDDLE[0] else "right" if x_share > MIDDLE[1] else None


def other_colour(kind: str, colour: str, rng: Rng) -> str:
    """Pairs that only testB shows are not named."""
    return shuffled(rng, [c for c in COLOURS if c != colour and (kind, c) not in HELD_OUT])[0]


def other_kind(kind: str, colour: str, rng: Rng) -> str:
    return shuffled(rng, [k for k in KINDS if k != kind and (k, colour) not in HELD_OUT])[0]


def other_texture(texture: str, rng: Rng) -> str:
    return shuffled(rng, [t for t in TEXTURES if t != texture])[0]
