"""Captions whose phrases name objects, questions that several objects answer, and what must be reasoned out.

Every phrase means all the objects of its name: "a red mug" is said where there is one, "two red mugs" where there are
two. So a phrase has one right mask, and no other object of the image could be meant.
"""

from typing import Any, NamedTuple

import numpy as np

from pixel_sail.scenes.describe import COUNTS, OF, a, look, named
from pixel_sail.scenes.facts import Picture
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled

Rng = np.random.Generator
Part = tuple[str, list[int]]  # a piece of a caption and the objects that it names, none for the words between

MAX_PHRASES = 5
_WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "in the upper half",
    "bottom": "in the lower half",
    "middle": "in the middle",
}


class Reason(NamedTuple):
    """What some kinds of thing are good for. Of the doubtful ones nobody could say, so they are not scored."""

    question: str
    phrase: str
    kinds: tuple[str, ...]
    doubtful: tuple[str, ...] = ()


REASONS = (
    Reason("What could somebody drink from?", "something to drink from", ("mug", "bottle")),
    Reason("What would you need to open a locked door?", "the thing that opens a lock", ("key",)),
    Reason("Where could a tired person sit down?", "something to sit on", ("chair",), ("box", "bicycle")),
    Reason("What keeps the rain off somebody who walks?", "protection from the rain", ("umbrella",), ("house", "tree")),
    Reason("What would take somebody along a road?", "something that drives on roads", ("car", "bicycle")),
    Reason("Where do people live?", "a place to live in", ("house",)),
    Reason("What makes a dark room bright?", "a source of light", ("lamp",), ("star",)),
    Reason("What can breathe under water?", "an animal", ("fish",)),
    Reason("What has roots or grows on something that has?", "a plant", ("tree", "flower"), ("leaf",)),
    Reason("What helps to reach a high roof?", "something to climb up on", ("ladder",), ("chair", "box", "tree")),
    Reason("What do children kick in a game?", "a toy that rolls", ("ball",)),
    Reason("What is worn on a finger?", "a piece of jewelry", ("ring",)),
    Reason("What flies at the end of a string?", "a toy that needs wind", ("kite",)),
    Reason("What shows a direction?", "a sign that points somewhere", ("arrow",)),
)


def choose_grounded(picture: Picture, rng: Rng) -> dict[str, Any]:
    """Plain JSON-able data; objects by their index, spans in characters."""
    return {
        "caption": _caption(picture, rng),
        "referred": _referred(picture, rng),
        "questions": _questions(picture, rng),
        "reason": _reason(picture, rng),
    }


def _caption(picture: Picture, rng: Rng) -> dict[str, Any]:
    """{text, phrases: [{span, objects}]}: relations, places, and what else there is."""
    names = shuffled(rng, list(dict.fromkeys(picture.names)))[:MAX_PHRASES]
    left = [_meant(picture, name) for name in names]
    sentences: list[list[Part]] = []
    for objects in list(left):
        partner = next((j for j in left if j != objects and objects in left and _side(picture, objects, j)), None)
        if partner and len(sentences) < 2:
            words = f" is {OF[_side(picture, objects, partner)]} "
            sentences.append([_phrase(picture, objects, rng), (words, []), _phrase(picture, partner, rng), (".", [])])
            left = [one for one in left if one not in (objects, partner)]
    placed = next((one for one in left if len(one) == 1 and picture.where(one[0]) in _WHERE), None)
    if placed:
        words = f" {_WHERE[picture.where(placed[0])]} of the picture."
        sentences.append([("there is ", []), _phrase(picture, placed, rng), (words, [])])
        left.remove(placed)
    if left:
        start = pick(rng, ("the picture also shows ", "one can also see ")) if sentences else "the picture shows "
        sentences.append([(start, []), *_list([_phrase(picture, one, rng) for one in left]), (".", [])])
    return _joined(sentences)


def _meant(picture: Picture, name: tuple[str, str]) -> list[int]:
    return [i for i in picture.indices if picture.names[i] == name]


def _side(picture: Picture, objects: list[int], others: list[int]) -> str | None:
    """How one thing surely stands to another; None where that is not clear, or they are not single things."""
    if len(objects) != 1 or len(others) != 1:
        return None
    return next((side for side in OF if objects[0] in picture.relations[side, others[0]].sure), None)


def _phrase(picture: Picture, objects: list[int], rng: Rng) -> Part:
    colour, kind = picture.names[objects[0]]
    if len(objects) > 1:
        return f"{COUNTS[len(objects)]} {colour} {KINDS[kind].plural}", objects
    size = picture.size(objects[0]) if rng.random() < 0.5 else None
    return a(look(picture.objects[objects[0]], rng, size)), objects


def _list(parts: list[Part]) -> list[Part]:
    """ "x, y and z"."""
    between = [(", ", [])] * (len(parts) - 2) + [(" and ", [])] if len(parts) > 1 else []
    return [part for pair in zip(parts, [*between, ("", [])], strict=True) for part in pair]


def _joined(sentences: list[list[Part]]) -> dict[str, Any]:
    text, phrases = "", []
    for sentence in sentences:
        text += " " if text else ""
        for number, (words, objects) in enumerate(sentence):
            words = words[0].upper() + words[1:] if number == 0 else words
            if objects:
                phrases.append({"span": [len(text), len(text) + len(words)], "objects": objects})
            text += words
    return {"text": text, "phrases": phrases}


def _referred(picture: Picture, rng: Rng) -> dict[str, Any]:
    """{text, refs: [(phrase, object)]} of single things; a phrase with a relation runs into that of its anchor."""
    single = shuffled(rng, [i for i in picture.indices if picture.names.count(picture.names[i]) == 1])[:MAX_PHRASES]
    refs: list[tuple[str, int]] = []
    clauses: list[str] = []
    while single:
        i = single.pop()
        anchor = next((j for j in single if _side(picture, [i], [j])), None)
        phrase = a(look(picture.objects[i], rng))
        if anchor is not None:
            other = a(look(picture.objects[anchor], rng))
            phrase = f"{phrase} {OF[_side(picture, [i], [anchor])]} {other}"
            refs.append((other, anchor))
            single.remove(anchor)
        refs.append((phrase, i))
        clauses.append(phrase)
    text = "".join(words for words, _ in _list([(clause, []) for clause in clauses])) if clauses else "nothing"
    return {"text": f"In this picture there is {text}.", "refs": refs}


def _questions(picture: Picture, rng: Rng) -> list[dict[str, Any]]:
    """{question, objects, text: with {seg} for each object, or None}; objects from left to right."""
    found = []
    colour = pick(rng, tuple(sorted(set(picture.values("colour")))))
    objects = _across(picture, [i for i in picture.indices if picture.objects[i]["colour"] == colour])
    things = [(f"{named(picture.names[i])} {{seg}}", []) for i in objects]
    words = "".join(text for text, _ in _list(things))
    verb = "things are" if len(objects) > 1 else "thing is"
    found.append(
        {
            "question": f"What do you see in this picture that is {colour}?",
            "objects": objects,
            "text": f"The {colour} {verb} {words}.",
        }
    )
    reason = _reason(picture, rng)
    if reason:
        found.append({"question": reason["question"], "objects": _across(picture, reason["targets"]), "text": None})
    return found


def _across(picture: Picture, objects: list[int]) -> list[int]:
    return sorted(objects, key=lambda i: picture.objects[i]["bbox"][0])


def _reason(picture: Picture, rng: Rng) -> dict[str, Any] | None:
    """{question, phrase, targets, doubtful}; None where no such thing is there."""
    kinds = picture.values("kind")
    for reason in shuffled(rng, REASONS):
        targets = [i for i in picture.indices if kinds[i] in reason.kinds]
        if targets:
            doubtful = [i for i in picture.indices if kinds[i] in reason.doubtful]
            return {
                "question": reason.question,
                "phrase": reason.phrase,
                "targets": targets,
                "doubtful": doubtful,
            }
    return None
