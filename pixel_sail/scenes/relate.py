"""Requests for other objects relative to prompted ones: what PerBench calls VRES.

A request is kept only where the resolver finds it clear and where the region matters: for most other objects in the
place of a prompted one the answer would be another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pixel_sail.scenes.describe import OF
from pixel_sail.scenes.facts import SIDES, Picture
from pixel_sail.scenes.language import RELATIONS, noun, pick, shuffled
from pixel_sail.scenes.queries import Query

Rng = np.random.Generator

PER_IMAGE = 4
MAX_TARGETS = 4
_SEVERAL = ("same", "compare")  # the topics that may mean more than one object
SAME_ANSWER_SHARE = 1 / 3  # of the other objects, at most, may lead to the same answer
_REQUESTS = ("Segment {}.", "Please segment {}.", "Find {}.", "Show me the mask of {}.")
_SAME = {
    "colour": ("all other things with the same colour as <obj0>", "everything else that has the colour of <obj0>"),
    "kind": ("all other things of the same kind as <obj0>", "everything else that is the same kind of thing as <obj0>"),
    "texture": ("all other things with the same texture as <obj0>", "everything else that has the texture of <obj0>"),
}
_BESIDE = ("{noun} directly {side} <obj0>", "{noun} that is directly {side} <obj0>")

Make = Callable[[list[int]], Query]  # prompted objects -> what is asked of them
Option = tuple[list[int], str, Make]  # prompts, the noun phrase, the query


def choose_vres(picture: Picture, rng: Rng) -> list[dict[str, Any]]:
    """Up to PER_IMAGE of {topic, query, prompts, targets, question, answer}, of different topics where possible.

    The tags <obj0>, <obj1>, ... are numbered in the order of their mention: first the prompts, then the targets.
    """
    found: list[dict[str, Any]] = []
    for _ in range(2):  # every topic once, then again where images are poor in relations
        odds = np.array(list(ODDS.values()))
        for t in rng.choice(len(ODDS), len(ODDS), replace=False, p=odds / odds.sum()):
            if len(found) == PER_IMAGE:
                return found
            topic = list(ODDS)[t]
            item = _first(picture, topic, [(one["query"], one["prompts"]) for one in found], rng)
            if item:
                found.append(item)
    return found


def _first(picture: Picture, topic: str, taken: list[tuple[Query, list[int]]], rng: Rng) -> dict[str, Any] | None:
    for prompts, text, make in _OPTIONS[topic](picture, rng):
        query = make(prompts)
        targets = picture.find(query)
        if not targets or len(targets) > (MAX_TARGETS if topic in _SEVERAL else 1):
            continue
        if set(targets) & set(prompts) or (query, prompts) in taken:
            continue
        if topic != "except" and not _region_matters(picture, prompts, make, targets):
            continue
        targets = rng.permutation(targets).tolist()
        question = pick(rng, _REQUESTS).format(f"the {text}" if not text.startswith(("all", "every", "what")) else text)
        answer = _answer(len(prompts), len(targets))
        return {
            "topic": topic,
            "query": query,
            "prompts": prompts,
            "targets": targets,
            "question": question,
            "answer": answer,
        }
    return None


def _answer(prompts: int, targets: int) -> str:
    tags = [f"<obj{prompts + k}>" for k in range(targets)]
    if len(tags) == 1:
        return f"It is {tags[0]}."
    return f"They are {', '.join(tags[:-1])} and {tags[-1]}."


def _region_matters(picture: Picture, prompts: list[int], make: Make, targets: list[int]) -> bool:
    """Replaces each prompt by each other object."""
    for k in range(len(prompts)):
        others = [j for j in picture.indices if j not in prompts]
        same = sum(picture.find(make([*prompts[:k], j, *prompts[k + 1 :]])) == targets for j in others)
        if same > SAME_ANSWER_SHARE * len(others):
            return False
    return True


def _objects(picture: Picture, rng: Rng) -> list[int]:
    return rng.permutation(len(picture.objects)).tolist()


def _filters(picture: Picture, rng: Rng) -> list[dict[str, str]]:
    """Any object, or one kind that occurs more than once, or one colour."""
    kinds = sorted({kind for kind in picture.values("kind") if picture.values("kind").count(kind) > 1})
    colours = sorted({colour for colour in picture.values("colour") if picture.values("colour").count(colour) > 1})
    options = [{}, *({"kind": kind} for kind in kinds), *({"colour": colour} for colour in colours)]
    return shuffled(rng, options)


def _relation(picture: Picture, rng: Rng, relations: tuple[str, ...] = SIDES) -> Iterator[Option]:
    for i in _objects(picture, rng):
        for wanted in _filters(picture, rng):
            relation = pick(rng, relations)
            text = pick(rng, RELATIONS[relation]).format(noun(wanted, rng), "<obj0>")
            yield (
                [i],
                text,
                lambda p, w=wanted, r=relation: {
                    "type": "relation",
                    "filter": w,
                    "relation": r,
                    "anchor": {"is": p[0]},
                },
            )


def _near(picture: Picture, rng: Rng) -> Iterator[Option]:
    return _relation(picture, rng, ("nearest to",))


def _beside(picture: Picture, rng: Rng) -> Iterator[Option]:
    for i in _objects(picture, rng):
        for side in shuffled(rng, SIDES):
            text = pick(rng, _BESIDE).format(noun=noun({}, rng), side=OF[side])
            yield [i], text, lambda p, s=side: {"type": "beside", "filter": {}, "relation": s, "anchor": {"is": p[0]}}


def _same(picture: Picture, rng: Rng) -> Iterator[Option]:
    for i in _objects(picture, rng):
        for key in shuffled(rng, list(_SAME)):
            if picture.objects[i][key] != "plain":
                yield (
                    [i],
                    pick(rng, _SAME[key]),
                    lambda p, k=key: {"type": "all", "filter": {k: picture.objects[p[0]][k], "except": p}},
                )


def _except(picture: Picture, rng: Rng) -> Iterator[Option]:
    """As often the largest itself is excepted as another one: else "the second largest" would always be right."""
    for wanted in _filters(picture, rng):
        size = pick(rng, ("largest", "smallest"))
        first = picture.find({"type": "size", "filter": wanted, "extreme": size})
        members = [i for i in _objects(picture, rng) if all(picture.objects[i][k] == v for k, v in wanted.items())]
        if first and len(members) > 1:
            rest = [i for i in members if i != first[0]]
            prompt = first[0] if rng.random() < 0.5 else rest[0]
            text = f"{size} {noun(wanted, rng)} {pick(rng, ('except', 'that is not'))} <obj0>"
            yield (
                [prompt],
                text,
                lambda p, w=wanted, s=size: {"type": "size", "filter": {**w, "except": p}, "extreme": s},
            )


def _between(picture: Picture, rng: Rng) -> Iterator[Option]:
    order = _objects(picture, rng)
    for i in order:
        for j in order:
            if i != j:
                text = pick(rng, (f"{noun({}, rng)} between <obj0> and <obj1>", "what is between <obj0> and <obj1>"))
                yield [i, j], text, lambda p: {"type": "between", "filter": {}, "anchors": [{"is": p[0]}, {"is": p[1]}]}


def _compare(picture: Picture, rng: Rng) -> Iterator[Option]:
    for i in _objects(picture, rng):
        size = pick(rng, ("larger", "smaller"))
        text = pick(rng, (f"everything that is {size} than <obj0>", f"all things that are {size} than <obj0>"))
        yield [i], text, lambda p, s=size: {"type": "compare", "filter": {}, "size": s, "anchor": {"is": p[0]}}


def _mix(picture: Picture, rng: Rng) -> Iterator[Option]:
    order = _objects(picture, rng)
    for i in order:
        for j in order:
            same = [picture.objects[i][key] == picture.objects[j][key] for key in ("colour", "kind")]
            if not any(same):
                text = f"{noun({}, rng)} with the colour of <obj0> and the kind of <obj1>"
                yield (
                    [i, j],
                    text,
                    lambda p: {
                        "type": "attribute",
                        "filter": {"colour": picture.objects[p[0]]["colour"], "kind": picture.objects[p[1]]["kind"]},
                    },
                )


ODDS = {
    "relation": 1.0,
    "beside": 1.5,
    "nearest": 1.0,
    "same": 1.5,
    "except": 0.4,
    "between": 0.7,
    "compare": 0.7,
    "mix": 0.7,
}
_OPTIONS: dict[str, Callable[[Picture, Rng], Iterator[Option]]] = {
    "relation": _relation,
    "beside": _beside,
    "nearest": _near,
    "same": _same,
    "except": _except,
    "between": _between,
    "compare": _compare,
    "mix": _mix,
}
