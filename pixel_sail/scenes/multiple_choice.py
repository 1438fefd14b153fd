"""Multiple-choice questions about one prompted region: four different options of which exactly one is right.

Wrong options come first of all from the other objects of the image, and rare values are asked about as often as common
ones. So nobody can know the answer without seeing which region is meant.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from pixel_sail.scenes.colours import COLOURS, TEXTURES
from pixel_sail.scenes.descriptions import COUNTS, DIRECTION_PHRASES, name_phrase
from pixel_sail.scenes.facts import DIRECTIONS, WHERES, ImageFacts
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled
from pixel_sail.scenes.types import (
    ANY,
    Attribute,
    BesideQuery,
    CompareQuery,
    Filter,
    MultipleChoice,
    Name,
    RelationQuery,
    Rng,
)

V = TypeVar("V")

MAX_QUESTIONS = 6  # an image
PROMPT = "<Prompt0>"
LETTERS = "ABCD"
WHERE_QUESTIONS = ("Where in the picture is {}?", "In which part of the picture is {}?")
ABSENT_SHARE = 0.04  # of the comparisons are with an absent object: those can be answered without the region


class Options(NamedTuple):
    """`right` is true of the region; `wrong` are three options that are not."""

    question: str
    right: str
    wrong: list[str]


def choose_questions(image: ImageFacts, rng: Rng) -> list[MultipleChoice]:
    """At most one question an object and MAX_QUESTIONS an image."""
    topics = list(TOPICS)
    odds = np.array([weight for _, weight in TOPICS.values()])
    questions = []
    for i in rng.permutation(len(image.objects))[:MAX_QUESTIONS].tolist():
        for t in rng.choice(len(topics), len(topics), replace=False, p=odds / odds.sum()):
            ask, _ = TOPICS[topics[t]]
            options = ask(image, i, rng)
            if options:
                questions.append(_lettered(i, topics[t], options, rng))
                break
    return questions


def _lettered(i: int, topic: str, options: Options, rng: Rng) -> MultipleChoice:
    texts = [options.right, *options.wrong]
    order = rng.permutation(4)
    lines = [f"{letter}. {texts[k]}" for letter, k in zip(LETTERS, order, strict=True)]
    answer = LETTERS[int(np.argmin(order))]
    return MultipleChoice(i, topic, "\n".join([options.question, *lines]), answer, options.right)


def _wrong(right: V, shown: list[V], others: list[V], rng: Rng) -> list[V]:
    """Three different wrong values, first those that the image shows."""
    near = shuffled(rng, sorted(set(shown) - {right}))
    return [*near, *shuffled(rng, [value for value in others if value != right and value not in near])][:3]


def _is_fair(right: V, shown: list[V], rng: Rng) -> bool:
    """Whether to ask about this value: all values of an image are asked about equally often, a lone value never."""
    counts = [shown.count(value) for value in set(shown)]
    if len(counts) == 1 or (len(counts) == 2 and rng.random() < 0.6):  # of two, a guess is right too often
        return False
    return bool(rng.random() < min(counts) / shown.count(right))


def _attribute(
    image: ImageFacts, i: int, rng: Rng, attribute: Attribute, every: list[str], wordings: tuple[str, ...]
) -> Options | None:
    right, shown = image.objects[i].value(attribute), image.values(attribute)
    if not _is_fair(right, shown, rng):
        return None
    return Options(pick(rng, wordings), right, _wrong(right, shown, every, rng))


def _colour(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    wordings = (f"What colour is {PROMPT}?", f"Which colour does {PROMPT} have?")
    return _attribute(image, i, rng, "colour", list(COLOURS), wordings)


def _kind(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    return _attribute(image, i, rng, "kind", list(KINDS), (f"What is {PROMPT}?", f"What kind of thing is {PROMPT}?"))


def _texture(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    wordings = (f"Which texture does {PROMPT} have?", f"What is the texture of {PROMPT}?")
    return _attribute(image, i, rng, "texture", list(TEXTURES), wordings)


def absent_names(image: ImageFacts, count: int, rng: Rng) -> list[Name]:
    """Up to `count` names of absent objects, near misses first: a colour and a kind of the image, but not together."""
    near = [(colour, kind) for colour in set(image.values("colour")) for kind in set(image.values("kind"))]
    random = [(pick(rng, tuple(COLOURS)), pick(rng, tuple(KINDS))) for _ in range(4 * count)]
    options = dict.fromkeys([*shuffled(rng, sorted(near)), *random])
    return [name for name in options if name not in image.names and image.may_say(name)][:count]


def _among(
    image: ImageFacts, question: str, right: Name, near: list[Name], far: list[Name], rng: Rng
) -> Options | None:
    """The options are names: wrong are first those of `near`, then those of `far`, then those of absent objects."""
    wrong = _wrong(right, near, sorted(set(far)), rng)
    wrong += [name for name in absent_names(image, 3, rng) if name != right][: 3 - len(wrong)]
    return Options(question, name_phrase(right), [name_phrase(name) for name in wrong]) if len(wrong) == 3 else None


def _name(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    if not _is_fair(image.names[i], image.names, rng):
        return None
    question = pick(rng, (f"Which of these is {PROMPT}?", f"What do you see in {PROMPT}?"))
    return _among(image, question, image.names[i], image.names, [], rng)


def _where(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    """Right is the place where the object surely is; wrong are places where it cannot be said to be."""
    places = [image.where(j) for j in image.indices]
    if not _is_fair(places[i], places, rng):
        return None
    false = [where for where in WHERES if i not in image.places[where].possible]
    wrong = _wrong(places[i], [where for where in places if where in false], false, rng)
    return Options(pick(rng, WHERE_QUESTIONS).format(PROMPT), places[i], wrong)


def _relative(
    image: ImageFacts, i: int, query: RelationQuery | BesideQuery, wordings: tuple[str, ...], rng: Rng
) -> Options | None:
    """What stands in a relation to the region; wrong are first the objects that stand so to others of the image.

    `query`: with any anchor; each object of the image takes its place.
    """
    targets = [image.targets(replace(query, anchor=Filter(index=j))) for j in image.indices]
    answers = [image.names[picked[0]] if picked else None for picked in targets]
    own, right = image.names[i], answers[i]
    if right is None or right == own or not _is_fair(right, [name for name in answers if name], rng):
        return None
    near = [name for name in answers if name and name != own]
    return _among(image, pick(rng, wordings), right, near, [name for name in image.names if name != own], rng)


def _beside(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    """What is directly on one side; what lies on the other sides or further off is wrong."""
    for direction in shuffled(rng, DIRECTIONS):
        words = DIRECTION_PHRASES[direction]
        wordings = (f"What is directly {words} {PROMPT}?", f"What do you see directly {words} {PROMPT}?")
        options = _relative(image, i, BesideQuery(ANY, direction, ANY), wordings, rng)
        if options:
            return options
    return None


def _nearest(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    wordings = (f"What is nearest to {PROMPT}?", f"Which thing is closest to {PROMPT}?")
    return _relative(image, i, RelationQuery(ANY, "nearest to", ANY), wordings, rng)


def _size(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    """Compared with one other object, which may be the region itself and rarely is absent."""
    single = image.with_own_name()
    missing = absent_names(image, 1, rng) if rng.random() < ABSENT_SHARE else []
    if missing:
        name, right = missing[0], "absent"
    elif single:
        anchor = single[rng.integers(len(single))]
        outcomes = {anchor: "itself"}
        for size in ("larger", "smaller"):
            outcomes |= dict.fromkeys(image.matches(CompareQuery(ANY, size, Filter(index=anchor))).sure, size)
        if i not in outcomes or not _is_fair(outcomes[i], list(outcomes.values()), rng):
            return None
        name, right = image.names[anchor], outcomes[i]
    else:
        return None
    it = " ".join(name)
    texts = {"larger": "larger", "smaller": "smaller", "itself": f"it is the {it}", "absent": f"there is no {it}"}
    text = texts.pop(right)
    return Options(f"How large is {PROMPT} compared with the {it}?", text, list(texts.values()))


def _rank(image: ImageFacts, i: int, rng: Rng) -> Options | None:
    size = pick(rng, ("larger", "smaller"))
    targets = [image.targets(CompareQuery(ANY, size, Filter(index=j))) for j in image.indices]
    counts = [None if picked is None else len(picked) for picked in targets]
    right, shown = counts[i], [count for count in counts if count is not None]
    if right is None or not _is_fair(right, shown, rng):
        return None
    wrong = _wrong(right, shown, list(range(len(image.objects))), rng)
    wrong += [n for n in range(5) if n not in (right, *wrong)][: 3 - len(wrong)]
    return Options(f"How many things are {size} than {PROMPT}?", COUNTS[right], [COUNTS[n] for n in wrong])


TOPICS: dict[str, tuple[Callable[[ImageFacts, int, Rng], Options | None], float]] = {  # and how often each is tried
    "colour": (_colour, 1.0),
    "kind": (_kind, 1.0),
    "texture": (_texture, 1.0),
    "name": (_name, 1.0),
    "where": (_where, 1.0),
    "beside": (_beside, 2.0),
    "nearest": (_nearest, 1.2),
    "size": (_size, 1.2),
    "rank": (_rank, 0.4),
}
