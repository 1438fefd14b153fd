"""Questions with two options about an image: asked by PixMMVP about pairs, taught by llava/choices.json."""

from typing import NamedTuple

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.descriptions import COUNTS, with_article
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import shuffled
from pixel_sail.scenes.types import Rng, SceneObject

TOPICS = ("colour", "texture", "kind", "side", "presence", "count")
TOTAL = "total"  # the number of all things: about no object, and so without an expression
MIDDLE = (0.42, 0.58)  # of the width: nothing between them is left or right
MAX_QUESTIONS = 3  # an image


class TwoOptions(NamedTuple):
    question: str
    options: tuple[str, str]
    right: int  # index of the right option


class Claim(NamedTuple):
    """A true and a false value of one thing."""

    name: str  # of the thing: its kind or (for the topic kind) its colour; "" for the total
    right: str
    wrong: str


def question_about(topic: str, claim: Claim, rng: Rng) -> TwoOptions:
    name, right, wrong = claim
    first, second = options = shuffled(rng, (right, wrong))
    question = {
        "colour": f"What colour is the {name}?",
        "texture": f"Is the {name} {first} or {second}?",
        "kind": f"Is the {name} thing {with_article(first)} or {with_article(second)}?",
        "side": f"Is the {name} on the left or on the right of the picture?",
        "presence": f"Can you see {with_article(name)} in the picture?" if name else "",
        "count": f"Is there one {name}, or are there two?",
        TOTAL: f"Are there {first} or {second} things in the picture?",
    }[topic]
    return TwoOptions(question, (options[0].capitalize(), options[1].capitalize()), options.index(right))


def choose_two_option_questions(objects: list[SceneObject], width: int, rng: Rng) -> list[TwoOptions]:
    """Up to MAX_QUESTIONS of different topics about a training image of `width` pixels."""
    questions = []
    for topic in shuffled(rng, (*TOPICS, TOTAL)):
        claims = _claims(topic, objects, width, rng)
        if claims:
            questions.append(question_about(topic, claims[rng.integers(len(claims))], rng))
    return questions[:MAX_QUESTIONS]


def _claims(topic: str, objects: list[SceneObject], width: int, rng: Rng) -> list[Claim]:
    """All that the topic can ask about these objects."""
    kinds, colours = [thing.kind for thing in objects], [thing.colour for thing in objects]
    single = [thing for thing in objects if kinds.count(thing.kind) == 1]
    if topic == "colour":
        return [Claim(thing.kind, thing.colour, other_colour(thing.kind, thing.colour, rng)) for thing in single]
    if topic == "texture":
        textured = [thing for thing in single if KINDS[thing.kind].solid and thing.size_class != "small"]
        return [Claim(thing.kind, thing.texture, other_texture(thing.texture, rng)) for thing in textured]
    if topic == "kind":
        single = [thing for thing in objects if colours.count(thing.colour) == 1]
        return [Claim(thing.colour, thing.kind, other_kind(thing.kind, thing.colour, rng)) for thing in single]
    if topic == "side":
        sides = [(thing.kind, side_of(thing.centroid[0] / width)) for thing in single]
        return [Claim(kind, side, "right" if side == "left" else "left") for kind, side in sides if side]
    if topic == "presence":
        present = kinds[rng.integers(len(kinds))]
        missing = shuffled(rng, [kind for kind in KINDS if kind not in kinds])[0]
        return [Claim(present, "yes", "no"), Claim(missing, "no", "yes")]
    if topic == "count":
        counts = [(kind, kinds.count(kind)) for kind in sorted(set(kinds))]
        return [Claim(kind, COUNTS[count], COUNTS[3 - count]) for kind, count in counts if count in (1, 2)]
    count = len(objects)
    return [Claim("", COUNTS[count], COUNTS[count - 1 if count == max(COUNTS) or rng.random() < 0.5 else count + 1])]


def side_of(x_share: float) -> str | None:
    """left, right, or None near the middle."""
    return "left" if x_share < MIDDLE[0] else "right" if x_share > MIDDLE[1] else None


def other_colour(kind: str, colour: str, rng: Rng) -> str:
    """Another colour for this kind, but no pair that is kept for testB."""
    return shuffled(rng, [c for c in COLOURS if c != colour and (kind, c) not in HELD_OUT])[0]


def other_kind(kind: str, colour: str, rng: Rng) -> str:
    """Another kind for this colour, but no pair that is kept for testB."""
    return shuffled(rng, [k for k in KINDS if k != kind and (k, colour) not in HELD_OUT])[0]


def other_texture(texture: str, rng: Rng) -> str:
    return shuffled(rng, [t for t in TEXTURES if t != texture])[0]
