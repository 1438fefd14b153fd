"""Requests for other objects relative to prompted ones: the VRES task of PerBench.

A request is kept only where the resolver finds it clear and where the region matters: with most other objects in the
place of a prompted one, the answer would be another.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pixel_sail.scenes.descriptions import DIRECTION_PHRASES
from pixel_sail.scenes.facts import DIRECTIONS, ImageFacts
from pixel_sail.scenes.language import RELATIONS, noun, pick, shuffled
from pixel_sail.scenes.resolver import select
from pixel_sail.scenes.types import (
    ANY,
    AllQuery,
    Attribute,
    AttributeQuery,
    BesideQuery,
    BetweenQuery,
    CompareQuery,
    Filter,
    Query,
    RegionRequest,
    RelationQuery,
    Rng,
    SizeQuery,
)

PER_IMAGE, MANY_PER_IMAGE = 4, 12
MAX_TARGETS = 4
_SEVERAL = ("same", "compare")  # the topics that may mean more than one object
SAME_ANSWER_SHARE = 1 / 3  # of the other objects, at most, may lead to the same answer
_REQUESTS = ("Segment {}.", "Please segment {}.", "Find {}.", "Show me the mask of {}.")
_SAME: dict[Attribute, tuple[str, str]] = {
    "colour": ("all other things with the same colour as <obj0>", "everything else that has the colour of <obj0>"),
    "kind": ("all other things of the same kind as <obj0>", "everything else that is the same kind of thing as <obj0>"),
    "texture": ("all other things with the same texture as <obj0>", "everything else that has the texture of <obj0>"),
}
_BESIDE = ("{noun} directly {side} <obj0>", "{noun} that is directly {side} <obj0>")


class Candidate(NamedTuple):
    prompts: list[int]  # objects
    text: str  # noun phrase
    query: Callable[[list[int]], Query]  # prompted objects -> the query about them


def choose_requests(image: ImageFacts, rng: Rng, count: int = PER_IMAGE, rounds: int = 2) -> list[RegionRequest]:
    """Up to `count` requests, of different topics where possible: a round takes each topic once."""
    topics, odds = list(ODDS), np.array(list(ODDS.values()))
    requests: list[RegionRequest] = []
    for _ in range(rounds):
        for t in rng.choice(len(topics), len(topics), replace=False, p=odds / odds.sum()):
            if len(requests) == count:
                return requests
            request = _first(image, topics[t], requests, rng)
            if request:
                requests.append(request)
    return requests


def choose_many_requests(image: ImageFacts, rng: Rng) -> list[RegionRequest]:
    """Up to MANY_PER_IMAGE requests about a training image, none about others."""
    return choose_requests(image, rng, MANY_PER_IMAGE, rounds=3) if image.split == "train" else []


def _first(image: ImageFacts, topic: str, before: list[RegionRequest], rng: Rng) -> RegionRequest | None:
    """The first clear request of a topic that is not among those `before`."""
    return next(clear_requests(image, topic, candidates(image, topic, rng), rng, before), None)


def candidates(image: ImageFacts, topic: str, rng: Rng) -> Iterator[Candidate]:
    """What could be asked of a topic, clear or not, about any of the objects."""
    return _CANDIDATES[topic](image, rng)


def clear_requests(
    image: ImageFacts, topic: str, possible: Iterable[Candidate], rng: Rng, before: Iterable[RegionRequest] = ()
) -> Iterator[RegionRequest]:
    """The clear ones of some candidates of a topic, each once and none of those `before`."""
    made = list(before)
    for candidate in possible:
        request = _request(image, topic, candidate, made, rng)
        if request:
            made.append(request)
            yield request


def _request(
    image: ImageFacts, topic: str, candidate: Candidate, before: list[RegionRequest], rng: Rng
) -> RegionRequest | None:
    """The candidate as a request, if it is clear and not among those `before`."""
    prompts, text, query_about = candidate
    query = query_about(prompts)
    targets = image.targets(query)
    if not targets or len(targets) > (MAX_TARGETS if topic in _SEVERAL else 1):
        return None
    if set(targets) & set(prompts) or (query, prompts) in [(other.query, other.prompts) for other in before]:
        return None
    if topic != "except" and not _region_matters(image, prompts, query_about, targets):
        return None
    targets = rng.permutation(targets).tolist()
    question = pick(rng, _REQUESTS).format(text if text.startswith(("all", "every", "what")) else f"the {text}")
    return RegionRequest(topic, query, prompts, targets, question, _answer(len(prompts), len(targets)))


def _answer(prompts: int, targets: int) -> str:
    tags = [f"<obj{prompts + k}>" for k in range(targets)]
    if len(tags) == 1:
        return f"It is {tags[0]}."
    return f"They are {', '.join(tags[:-1])} and {tags[-1]}."


def _region_matters(
    image: ImageFacts, prompts: list[int], query_about: Callable[[list[int]], Query], targets: list[int]
) -> bool:
    """Whether replacing a prompt by another object mostly changes the answer."""
    for k in range(len(prompts)):
        others = [j for j in image.indices if j not in prompts]
        same = sum(image.targets(query_about([*prompts[:k], j, *prompts[k + 1 :]])) == targets for j in others)
        if same > SAME_ANSWER_SHARE * len(others):
            return False
    return True


def shuffled_objects(image: ImageFacts, rng: Rng) -> list[int]:
    return rng.permutation(len(image.objects)).tolist()


def _pairs(image: ImageFacts, rng: Rng) -> list[tuple[int, int]]:
    order = shuffled_objects(image, rng)
    return [(i, j) for i in order for j in order if i != j]


def _filters(image: ImageFacts, rng: Rng) -> list[Filter]:
    """All objects, or a kind that occurs more than once, or a colour that does."""
    options = [ANY]
    for attribute in ("kind", "colour"):
        values = image.values(attribute)
        options += [Filter({attribute: value}) for value in sorted(set(values)) if values.count(value) > 1]
    return shuffled(rng, options)


def _relation(
    image: ImageFacts, rng: Rng, regions: list[int] | None = None, relations: tuple[str, ...] = DIRECTIONS
) -> Iterator[Candidate]:
    for i in regions or shuffled_objects(image, rng):
        for wanted in _filters(image, rng):
            relation = pick(rng, relations)
            text = pick(rng, RELATIONS[relation]).format(noun(wanted, rng), "<obj0>")
            yield Candidate([i], text, lambda p, w=wanted, r=relation: RelationQuery(w, r, Filter(index=p[0])))


def _nearest(image: ImageFacts, rng: Rng, regions: list[int] | None = None) -> Iterator[Candidate]:
    return _relation(image, rng, regions, ("nearest to",))


def _beside(image: ImageFacts, rng: Rng, regions: list[int] | None = None) -> Iterator[Candidate]:
    for i in regions or shuffled_objects(image, rng):
        for direction in shuffled(rng, DIRECTIONS):
            text = pick(rng, _BESIDE).format(noun=noun(ANY, rng), side=DIRECTION_PHRASES[direction])
            yield Candidate([i], text, lambda p, d=direction: BesideQuery(ANY, d, Filter(index=p[0])))


def _same(image: ImageFacts, rng: Rng, regions: list[int] | None = None) -> Iterator[Candidate]:
    for i in regions or shuffled_objects(image, rng):
        for attribute in shuffled(rng, list(_SAME)):
            if image.objects[i].value(attribute) != "plain":
                yield Candidate(
                    [i],
                    pick(rng, _SAME[attribute]),
                    lambda p, a=attribute: AllQuery(Filter({a: image.objects[p[0]].value(a)}, excluded=tuple(p))),
                )


def _except(image: ImageFacts, rng: Rng) -> Iterator[Candidate]:
    """The prompt is the largest itself as often as another: otherwise the second largest would always be right."""
    for wanted in _filters(image, rng):
        size = pick(rng, ("largest", "smallest"))
        first = image.targets(SizeQuery(wanted, extreme=size))
        admitted = select(image.objects, wanted)
        members = [i for i in shuffled_objects(image, rng) if i in admitted]
        if first and len(members) > 1:
            rest = [i for i in members if i != first[0]]
            prompt = first[0] if rng.random() < 0.5 else rest[0]
            text = f"{size} {noun(wanted, rng)} {pick(rng, ('except', 'that is not'))} <obj0>"
            yield Candidate(
                [prompt],
                text,
                lambda p, w=wanted, s=size: SizeQuery(Filter(w.attributes, excluded=tuple(p)), extreme=s),
            )


def _between(image: ImageFacts, rng: Rng) -> Iterator[Candidate]:
    for i, j in _pairs(image, rng):
        text = pick(rng, (f"{noun(ANY, rng)} between <obj0> and <obj1>", "what is between <obj0> and <obj1>"))
        yield Candidate([i, j], text, lambda p: BetweenQuery(ANY, (Filter(index=p[0]), Filter(index=p[1]))))


def _compare(image: ImageFacts, rng: Rng) -> Iterator[Candidate]:
    for i in shuffled_objects(image, rng):
        size = pick(rng, ("larger", "smaller"))
        text = pick(rng, (f"everything that is {size} than <obj0>", f"all things that are {size} than <obj0>"))
        yield Candidate([i], text, lambda p, s=size: CompareQuery(ANY, s, Filter(index=p[0])))


def _mix(image: ImageFacts, rng: Rng) -> Iterator[Candidate]:
    objects = image.objects
    for i, j in _pairs(image, rng):
        if objects[i].colour != objects[j].colour and objects[i].kind != objects[j].kind:
            yield Candidate(
                [i, j],
                f"{noun(ANY, rng)} with the colour of <obj0> and the kind of <obj1>",
                lambda p: AttributeQuery(Filter({"colour": objects[p[0]].colour, "kind": objects[p[1]].kind})),
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
_CANDIDATES: dict[str, Callable[[ImageFacts, Rng], Iterator[Candidate]]] = {
    "relation": _relation,
    "beside": _beside,
    "nearest": _nearest,
    "same": _same,
    "except": _except,
    "between": _between,
    "compare": _compare,
    "mix": _mix,
}
# Topics whose candidates can be about some regions alone: the third argument. Lessons take them in this order.
ABOUT_REGIONS: dict[str, Callable[[ImageFacts, Rng, list[int]], Iterator[Candidate]]] = {
    "beside": _beside,
    "nearest": _nearest,
    "same": _same,
}
