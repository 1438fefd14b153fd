"""Multiple-choice questions about one prompted region: four different options of which exactly one is right.

The distractors come first of all from what else the image shows, and what is rare in the image is asked for as
often as what is common: who does not see which region is meant cannot know.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pixel_sail.scenes.colours import COLOURS, TEXTURES
from pixel_sail.scenes.describe import COUNTS, OF, named
from pixel_sail.scenes.facts import SIDES, WHERES, Name, Picture
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled
from pixel_sail.scenes.queries import Query

Rng = np.random.Generator

MAX_MCQS = 6
PROMPT = "<Prompt0>"
LETTERS = "ABCD"
ABSENT_SHARE = 0.04  # of the comparisons are with what is not there: anybody could answer those


class Choice(NamedTuple):
    """``right`` is true of the region; ``wrong`` are three that are not."""

    question: str
    right: str
    wrong: list[str]


def choose_mcqs(picture: Picture, rng: Rng) -> list[dict[str, Any]]:
    """At most one question an object and MAX_MCQS an image: {object, topic, question, answer, right}."""
    found = []
    for i in rng.permutation(len(picture.objects))[:MAX_MCQS].tolist():
        topics = list(TOPICS)
        odds = np.array([TOPICS[topic][1] for topic in topics])
        for t in rng.choice(len(topics), len(topics), replace=False, p=odds / odds.sum()):
            choice = TOPICS[topics[t]][0](picture, i, rng)
            if choice:
                found.append({"object": i, "topic": topics[t], **_lettered(choice, rng)})
                break
    return found


def _lettered(choice: Choice, rng: Rng) -> dict[str, str]:
    options = [choice.right, *choice.wrong]
    order = rng.permutation(4)
    lines = [f"{letter}. {options[k]}" for letter, k in zip(LETTERS, order, strict=True)]
    answer = LETTERS[int(np.argmin(order))]
    return {"question": "\n".join([choice.question, *lines]), "answer": answer, "right": choice.right}


def _wrong(right: Any, shown: list, others: list, rng: Rng) -> list:
    """Three different wrong values, those that the image shows first."""
    near = shuffled(rng, sorted(set(shown) - {right}))
    return [*near, *shuffled(rng, [one for one in others if one != right and one not in near])][:3]


def _fair(right: Any, shown: list, rng: Rng) -> bool:
    """Whether to ask for this value: all that the image shows are asked for equally often, one alone never."""
    counts = [shown.count(value) for value in set(shown)]
    if len(counts) == 1 or (len(counts) == 2 and rng.random() < 0.6):  # of two, a guess is right too often
        return False
    return bool(rng.random() < min(counts) / shown.count(right))


def _attribute(
    picture: Picture, i: int, rng: Rng, key: str, every: list[str], wordings: tuple[str, ...]
) -> Choice | None:
    right, shown = picture.objects[i][key], picture.values(key)
    if not _fair(right, shown, rng):
        return None
    return Choice(pick(rng, wordings), right, _wrong(right, shown, every, rng))


def _colour(picture: Picture, i: int, rng: Rng) -> Choice | None:
    wordings = (f"What colour is {PROMPT}?", f"Which colour does {PROMPT} have?")
    return _attribute(picture, i, rng, "colour", list(COLOURS), wordings)


def _kind(picture: Picture, i: int, rng: Rng) -> Choice | None:
    return _attribute(picture, i, rng, "kind", list(KINDS), (f"What is {PROMPT}?", f"What kind of thing is {PROMPT}?"))


def _texture(picture: Picture, i: int, rng: Rng) -> Choice | None:
    wordings = (f"Which texture does {PROMPT} have?", f"What is the texture of {PROMPT}?")
    return _attribute(picture, i, rng, "texture", list(TEXTURES), wordings)


def absent_names(picture: Picture, count: int, rng: Rng) -> list[Name]:
    """Names of nothing in the image, near misses first: a colour and a kind that are there, but not together."""
    here = [(colour, kind) for colour in set(picture.values("colour")) for kind in set(picture.values("kind"))]
    some = [(pick(rng, tuple(COLOURS)), pick(rng, tuple(KINDS))) for _ in range(4 * count)]
    options = dict.fromkeys([*shuffled(rng, sorted(here)), *some])
    return [name for name in options if name not in picture.names and picture.may_say(name)][:count]


def _among(picture: Picture, question: str, right: Name, near: list[Name], far: list[Name], rng: Rng) -> Choice | None:
    """The options are names: wrong are those of ``near`` first, then of ``far``, then of what is not there."""
    wrong = _wrong(right, near, sorted(set(far)), rng)
    wrong += [name for name in absent_names(picture, 3, rng) if name != right][: 3 - len(wrong)]
    return Choice(question, named(right), [named(name) for name in wrong]) if len(wrong) == 3 else None


def _name(picture: Picture, i: int, rng: Rng) -> Choice | None:
    if not _fair(picture.names[i], picture.names, rng):
        return None
    question = pick(rng, (f"Which of these is {PROMPT}?", f"What do you see in {PROMPT}?"))
    return _among(picture, question, picture.names[i], picture.names, [], rng)


def _where(picture: Picture, i: int, rng: Rng) -> Choice | None:
    """Right is the place where the object surely is; wrong are those where it cannot be said to be."""
    places = [picture.where(j) for j in picture.indices]
    if not _fair(places[i], places, rng):
        return None
    false = [where for where in WHERES if i not in picture.places[where].possible]
    wrong = _wrong(places[i], [where for where in places if where in false], false, rng)
    wordings = (f"Where in the picture is {PROMPT}?", f"In which part of the picture is {PROMPT}?")
    return Choice(pick(rng, wordings), places[i], wrong)


def _relative(picture: Picture, i: int, query: Query, wordings: tuple[str, ...], rng: Rng) -> Choice | None:
    """What stands in a relation to the region; wrong are first the things that stand so to others of the image."""
    found = [picture.find({**query, "filter": {}, "anchor": {"is": j}}) for j in picture.indices]
    answers = [picture.names[one[0]] if one else None for one in found]
    own, right = picture.names[i], answers[i]
    if right is None or right == own or not _fair(right, [name for name in answers if name], rng):
        return None
    near = [name for name in answers if name and name != own]
    return _among(picture, pick(rng, wordings), right, near, [name for name in picture.names if name != own], rng)


def _beside(picture: Picture, i: int, rng: Rng) -> Choice | None:
    """What is directly on one side; what lies on the other sides or further off is wrong."""
    for side in shuffled(rng, SIDES):
        wordings = (f"What is directly {OF[side]} {PROMPT}?", f"What do you see directly {OF[side]} {PROMPT}?")
        choice = _relative(picture, i, {"type": "beside", "relation": side}, wordings, rng)
        if choice:
            return choice
    return None


def _nearest(picture: Picture, i: int, rng: Rng) -> Choice | None:
    wordings = (f"What is nearest to {PROMPT}?", f"Which thing is closest to {PROMPT}?")
    return _relative(picture, i, {"type": "relation", "relation": "nearest to"}, wordings, rng)


def _size(picture: Picture, i: int, rng: Rng) -> Choice | None:
    """Against one other thing, which may be the region itself and rarely is not there at all."""
    single = [j for j in picture.indices if picture.names.count(picture.names[j]) == 1]
    missing = absent_names(picture, 1, rng) if rng.random() < ABSENT_SHARE else []
    if missing:
        name, right = missing[0], "absent"
    elif single:
        anchor = single[rng.integers(len(single))]
        outcomes = {anchor: "itself"}
        for size in ("larger", "smaller"):
            sure = picture.matches({"type": "compare", "filter": {}, "size": size, "anchor": {"is": anchor}}).sure
            outcomes |= dict.fromkeys(sure, size)
        if i not in outcomes or not _fair(outcomes[i], list(outcomes.values()), rng):
            return None
        name, right = picture.names[anchor], outcomes[i]
    else:
        return None
    it = " ".join(name)
    options = {"larger": "larger", "smaller": "smaller", "itself": f"it is the {it}", "absent": f"there is no {it}"}
    text = options.pop(right)
    return Choice(f"How large is {PROMPT} compared with the {it}?", text, list(options.values()))


def _rank(picture: Picture, i: int, rng: Rng) -> Choice | None:
    size = pick(rng, ("larger", "smaller"))
    query = {"type": "compare", "filter": {}, "size": size}
    found = [picture.find({**query, "anchor": {"is": j}}) for j in picture.indices]
    counts = [len(one) for one in found if one is not None]
    if found[i] is None or not _fair(len(found[i]), counts, rng):
        return None
    wrong = _wrong(len(found[i]), counts, list(range(len(picture.objects))), rng)
    wrong += [n for n in range(5) if n not in (len(found[i]), *wrong)][: 3 - len(wrong)]
    return Choice(f"How many things are {size} than {PROMPT}?", COUNTS[len(found[i])], [COUNTS[n] for n in wrong])


TOPICS: dict[str, tuple[Callable[[Picture, int, Rng], Choice | None], float]] = {
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
