"""Captions whose phrases name objects, questions that several objects answer, and questions that need reasoning.

Every phrase means all the objects of its name: "a red mug" is said where there is only one, "two red mugs" where there
are two. So a phrase has one right mask, and no other object of the image could be meant.
"""

from typing import NamedTuple

from pixel_sail.scenes.descriptions import (
    COUNTS,
    DIRECTION_PHRASES,
    appearance,
    capitalized,
    name_phrase,
    with_article,
)
from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled
from pixel_sail.scenes.types import (
    CaptionPhrase,
    GroundedCaption,
    GroundedQuestion,
    GroundedTexts,
    Name,
    ReasoningQuestion,
    ReferringCaption,
    Rng,
)

# a piece of a caption and the objects that it names; the words between phrases name no objects
Part = tuple[str, list[int]]

MAX_PHRASES = 5
_WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "in the upper half",
    "bottom": "in the lower half",
    "middle": "in the middle",
}


class Use(NamedTuple):
    """What some kinds of thing are good for. Opinions differ about the doubtful kinds, so those are not scored."""

    question: str
    phrase: str
    kinds: tuple[str, ...]
    doubtful: tuple[str, ...] = ()


USES = (
    Use("What could somebody drink from?", "something to drink from", ("mug", "bottle")),
    Use("What would you need to open a locked door?", "the thing that opens a lock", ("key",)),
    Use("Where could a tired person sit down?", "something to sit on", ("chair",), ("box", "bicycle")),
    Use("What keeps the rain off somebody who walks?", "protection from the rain", ("umbrella",), ("house", "tree")),
    Use("What would take somebody along a road?", "something that drives on roads", ("car", "bicycle")),
    Use("Where do people live?", "a place to live in", ("house",)),
    Use("What makes a dark room bright?", "a source of light", ("lamp",), ("star",)),
    Use("What can breathe under water?", "an animal", ("fish",)),
    Use("What has roots or grows on something that has?", "a plant", ("tree", "flower"), ("leaf",)),
    Use("What helps to reach a high roof?", "something to climb up on", ("ladder",), ("chair", "box", "tree")),
    Use("What do children kick in a game?", "a toy that rolls", ("ball",)),
    Use("What is worn on a finger?", "a piece of jewelry", ("ring",)),
    Use("What flies at the end of a string?", "a toy that needs wind", ("kite",)),
    Use("What shows a direction?", "a sign that points somewhere", ("arrow",)),
)


def choose_grounded_texts(image: ImageFacts, rng: Rng) -> GroundedTexts:
    return GroundedTexts(
        caption=_caption(image, rng),
        referring=_referring(image, rng),
        questions=_questions(image, rng),
        reasoning=_reasoning(image, rng),
    )


def _caption(image: ImageFacts, rng: Rng) -> GroundedCaption:
    """Sentences about relations, about a place, and about what else the image shows."""
    names = shuffled(rng, list(dict.fromkeys(image.names)))[:MAX_PHRASES]
    remaining = [_meant(image, name) for name in names]
    sentences: list[list[Part]] = []
    for objects in list(remaining):
        others = remaining if objects in remaining and len(sentences) < 2 else []
        partner = next((group for group in others if group != objects and _direction(image, objects, group)), None)
        if partner:
            words = f" is {DIRECTION_PHRASES[_direction(image, objects, partner)]} "
            sentences.append([_phrase(image, objects, rng), (words, []), _phrase(image, partner, rng), (".", [])])
            remaining = [group for group in remaining if group not in (objects, partner)]
    placed = next((group for group in remaining if len(group) == 1 and image.where(group[0]) in _WHERE), None)
    if placed:
        words = f" {_WHERE[image.where(placed[0])]} of the picture."
        sentences.append([("there is ", []), _phrase(image, placed, rng), (words, [])])
        remaining.remove(placed)
    if remaining:
        start = pick(rng, ("the picture also shows ", "one can also see ")) if sentences else "the picture shows "
        sentences.append([(start, []), *_enumerated([_phrase(image, group, rng) for group in remaining]), (".", [])])
    return _joined(sentences)


def _meant(image: ImageFacts, name: Name) -> list[int]:
    return [i for i in image.indices if image.names[i] == name]


def _direction(image: ImageFacts, objects: list[int], anchors: list[int]) -> str | None:
    """Where one object surely is as seen from another; None where that is not clear, or for several objects."""
    return image.direction(objects[0], anchors[0]) if len(objects) == len(anchors) == 1 else None


def _phrase(image: ImageFacts, objects: list[int], rng: Rng) -> Part:
    colour, kind = image.names[objects[0]]
    if len(objects) > 1:
        return f"{COUNTS[len(objects)]} {colour} {KINDS[kind].plural}", objects
    size = image.size(objects[0]) if rng.random() < 0.5 else None
    return with_article(appearance(image.objects[objects[0]], rng, size)), objects


def _enumerated(parts: list[Part]) -> list[Part]:
    """ "x, y and z"."""
    between = [(", ", [])] * (len(parts) - 2) + [(" and ", [])] if len(parts) > 1 else []
    return [part for pair in zip(parts, [*between, ("", [])], strict=True) for part in pair]


def _joined(sentences: list[list[Part]]) -> GroundedCaption:
    text, phrases = "", []
    for sentence in sentences:
        text += " " if text else ""
        for number, (words, objects) in enumerate(sentence):
            if objects:
                phrases.append(CaptionPhrase((len(text), len(text) + len(words)), objects))
            text += words if number else capitalized(words)
    return GroundedCaption(text, phrases)


def _enumeration(texts: list[str]) -> str:
    return "".join(words for words, _ in _enumerated([(text, []) for text in texts]))


def _referring(image: ImageFacts, rng: Rng) -> ReferringCaption:
    """Phrases for objects with a name of their own; a phrase with a relation contains that of its anchor."""
    remaining = shuffled(rng, image.with_own_name())[:MAX_PHRASES]
    phrases: list[tuple[str, int]] = []
    clauses: list[str] = []
    while remaining:
        i = remaining.pop()
        anchor = next((j for j in remaining if image.direction(i, j)), None)
        phrase = with_article(appearance(image.objects[i], rng))
        if anchor is not None:
            anchor_phrase = with_article(appearance(image.objects[anchor], rng))
            phrase = f"{phrase} {DIRECTION_PHRASES[image.direction(i, anchor)]} {anchor_phrase}"
            phrases.append((anchor_phrase, anchor))
            remaining.remove(anchor)
        phrases.append((phrase, i))
        clauses.append(phrase)
    return ReferringCaption(f"In this picture there is {_enumeration(clauses) if clauses else 'nothing'}.", phrases)


def _questions(image: ImageFacts, rng: Rng) -> list[GroundedQuestion]:
    colour = pick(rng, tuple(sorted(set(image.values("colour")))))
    objects = _across(image, [i for i in image.indices if image.objects[i].colour == colour])
    words = _enumeration([f"{name_phrase(image.names[i])} {{seg}}" for i in objects])
    verb = "things are" if len(objects) > 1 else "thing is"
    question = f"What do you see in this picture that is {colour}?"
    questions = [GroundedQuestion(question, objects, f"The {colour} {verb} {words}.")]
    reasoning = _reasoning(image, rng)
    if reasoning:
        questions.append(GroundedQuestion(reasoning.question, _across(image, reasoning.targets), None))
    return questions


def _across(image: ImageFacts, objects: list[int]) -> list[int]:
    """From left to right."""
    return sorted(objects, key=lambda i: image.objects[i].bbox[0])


def _reasoning(image: ImageFacts, rng: Rng) -> ReasoningQuestion | None:
    kinds = image.values("kind")
    for use in shuffled(rng, USES):
        targets = [i for i in image.indices if kinds[i] in use.kinds]
        if targets:
            doubtful = [i for i in image.indices if kinds[i] in use.doubtful]
            return ReasoningQuestion(use.question, use.phrase, targets, doubtful)
    return None
