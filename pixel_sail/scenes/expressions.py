"""The expressions of RefCOCO and gRefCOCO: candidates for each object, kept where the resolver finds them clear."""

from collections.abc import Iterator

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import NUMBERS, RANKS, RELATIONS, phrase, shuffled
from pixel_sail.scenes.resolver import select
from pixel_sail.scenes.types import (
    AllQuery,
    Attribute,
    AttributeQuery,
    Filter,
    OrdinalQuery,
    PairQuery,
    PositionQuery,
    Query,
    Reference,
    RelationQuery,
    Rng,
    SceneObject,
    SizeQuery,
)

AttributeOdds = dict[tuple[Attribute, ...], float]

TYPE_ODDS = {"attribute": 0.40, "position": 0.18, "relation": 0.155, "ordinal": 0.12, "size": 0.145}
SIDES = ("left", "right", "top", "bottom")
_WHERE = (*SIDES, "middle", "top left", "top right", "bottom left", "bottom right")
_ATTRIBUTE_SETS: AttributeOdds = {
    ("kind", "colour"): 4.0,
    ("kind",): 2.5,
    ("kind", "texture"): 2.0,
    ("kind", "colour", "texture"): 2.0,
    ("colour",): 1.0,
    ("texture",): 1.0,
    ("colour", "texture"): 1.0,
}
_BASE_SETS: AttributeOdds = {("kind",): 5.0, ("kind", "colour"): 2.0, ("colour",): 1.5, ("texture",): 1.0, (): 1.0}
_PAIR_SETS: AttributeOdds = {("kind",): 1.0, ("kind", "colour"): 1.0}


def choose_refs(image: ImageFacts, rng: Rng) -> list[Reference]:
    """RefCOCO: at most one reference an object. In testB mostly the objects of the held-out pairs."""
    refs = []
    for target, thing in enumerate(image.objects):
        is_new = (thing.kind, thing.colour) in HELD_OUT
        if image.split == "testB" and not is_new and rng.random() > 0.2:
            continue
        sentences = _sentences(image, target, int(rng.choice([2, 3], p=[0.35, 0.65])), rng)
        if sentences:
            refs.append(Reference([target], sentences))
    return refs


def choose_grefs(image: ImageFacts, rng: Rng) -> list[Reference]:
    """gRefCOCO: about two references to one object, two to several and two to none."""
    refs = []
    for target in rng.permutation(len(image.objects))[:2].tolist():
        sentences = _sentences(image, target, int(rng.integers(1, 3)), rng)
        if sentences:
            refs.append(Reference([target], sentences))
    refs += _several_targets(image, rng)
    refs += [Reference([], _phrasings(query, 0, rng)) for query in _absent(image, rng)]
    return refs


def _phrasings(query: Query, targets: int, rng: Rng) -> list[tuple[str, Query]]:
    """One or two wordings of a query that picks `targets` objects."""
    texts = dict.fromkeys(phrase(query, rng, targets) for _ in range(rng.integers(1, 3)))
    return [(text, query) for text in texts]


def _sentences(image: ImageFacts, target: int, count: int, rng: Rng) -> list[tuple[str, Query]]:
    """Up to `count` different (sentence, query) for one object, of different types where that is possible."""
    types = list(TYPE_ODDS)
    drawn = [types[i] for i in rng.choice(len(types), count, p=list(TYPE_ODDS.values()))]
    sentences: dict[str, Query] = {}
    # other types stand in for one that has no unambiguous query for this object, attributes first
    for query_type in [*_without_repeats(drawn), "attribute", *shuffled(rng, types)]:
        if len(sentences) == count:
            break
        for query in _candidates(query_type, image, target, rng):
            if query not in sentences.values() and image.targets(query) == [target]:
                sentences[phrase(query, rng)] = query
                break
    return list(sentences.items())


def _without_repeats(types: list[str]) -> list[str]:
    """Only attributes may come twice: there are many ways to name them."""
    return [name for i, name in enumerate(types) if name == "attribute" or name not in types[:i]]


def _filters(thing: SceneObject, odds: AttributeOdds, rng: Rng) -> list[Filter]:
    """The filters that `thing` passes, in a random order that prefers the heavy ones. "Plain object" is not said."""
    sets = [keys for keys in odds if "texture" not in keys or thing.texture != "plain" or "kind" in keys]
    total = sum(odds[keys] for keys in sets)
    order = rng.choice(len(sets), len(sets), replace=False, p=[odds[keys] / total for keys in sets])
    return [thing.filter(sets[i]) for i in order]


def _candidates(query_type: str, image: ImageFacts, target: int, rng: Rng) -> Iterator[Query]:
    """Queries of one type that may pick `target`; where possible first those that choose among several objects."""
    thing, objects = image.objects[target], image.objects
    if query_type == "attribute":
        yield from (AttributeQuery(wanted) for wanted in _filters(thing, _ATTRIBUTE_SETS, rng))
        return
    bases = _filters(thing, _BASE_SETS, rng)
    admitted = [(wanted, len(select(objects, wanted))) for wanted in bases]
    for wanted, count in [(wanted, count) for wanted, count in admitted if count > 1]:
        queries: list[Query]
        if query_type == "position":
            queries = _positions(wanted) + [PositionQuery(wanted, extreme=side) for side in SIDES]
        elif query_type == "ordinal":
            queries = [OrdinalQuery(wanted, rank, side) for rank in RANKS if rank <= count for side in SIDES]
        elif query_type == "size":
            queries = [SizeQuery(wanted, extreme="largest"), SizeQuery(wanted, extreme="smallest")]
            if thing.size_class != "medium":
                queries.append(SizeQuery(wanted, size_class=thing.size_class))
        else:
            queries = _relations(wanted, image, target, rng)
        yield from shuffled(rng, queries)
    if query_type in ("position", "relation"):
        wanted = thing.filter(("kind",))
        queries = _positions(wanted) if query_type == "position" else _relations(wanted, image, target, rng)
        yield from shuffled(rng, queries)


def _positions(wanted: Filter) -> list[Query]:
    return [PositionQuery(wanted, where=where) for where in _WHERE]


def _relations(wanted: Filter, image: ImageFacts, target: int, rng: Rng) -> list[Query]:
    """Each relation to up to four anchors that a short description picks."""
    queries: list[Query] = []
    for i in shuffled(rng, [i for i in image.indices if i != target])[:4]:
        descriptions = (image.objects[i].filter(keys) for keys in (("kind",), ("kind", "colour")))
        anchor = next((filter_ for filter_ in descriptions if select(image.objects, filter_) == [i]), None)
        if anchor:
            queries += [RelationQuery(wanted, relation, anchor) for relation in RELATIONS]
    return queries


def _several_targets(image: ImageFacts, rng: Rng) -> list[Reference]:
    """Two references to different sets of two objects or more."""
    objects = image.objects
    bases = [wanted for thing in objects for wanted in _filters(thing, _BASE_SETS, rng)]
    queries: list[Query] = []
    for wanted in shuffled(rng, bases):
        in_half = rng.random() < 0.4 or not wanted.attributes
        queries.append(AllQuery(wanted, where=SIDES[rng.integers(4)] if in_half else None))
    first, second = (_filters(objects[i], _PAIR_SETS, rng)[0] for i in rng.permutation(len(objects))[:2])
    queries.insert(int(rng.integers(0, 5)), PairQuery((first, second)))
    refs: list[Reference] = []
    for query in queries:
        targets = image.targets(query) or []
        if 2 <= len(targets) <= max(NUMBERS) and targets not in [ref.targets for ref in refs]:
            refs.append(Reference(targets, _phrasings(query, len(targets), rng)))
        if len(refs) == 2:
            break
    return refs


def _absent(image: ImageFacts, rng: Rng) -> list[Query]:
    """Two descriptions that fit no object, near misses first: a kind of the image in a colour that it does not have."""
    kinds, colours = sorted(set(image.values("kind"))), sorted(set(image.values("colour")))
    options: list[Filter] = []
    for _ in range(12):
        present: dict[Attribute, str] = {"kind": kinds[rng.integers(len(kinds))]}
        missing: dict[Attribute, str] = {"kind": list(KINDS)[rng.integers(len(KINDS))]}
        texture: dict[Attribute, str] = {"texture": TEXTURES[rng.integers(1, len(TEXTURES))]}
        other: dict[Attribute, str] = {"colour": list(COLOURS)[rng.integers(len(COLOURS))]}
        here: dict[Attribute, str] = {"colour": colours[rng.integers(len(colours))]}
        styles = [present | here, present | other, present | texture, missing, missing | here, missing | texture, other]
        options.append(Filter(styles[rng.choice(len(styles), p=[0.3, 0.15, 0.1, 0.1, 0.2, 0.1, 0.05])]))
    queries: list[Query] = []
    for wanted in options:
        query = AttributeQuery(wanted)
        if _may_be_absent(image, wanted) and query not in queries and len(queries) < 2:
            queries.append(query)
    return queries


def _may_be_absent(image: ImageFacts, wanted: Filter) -> bool:
    """The image shows no such object, its kind can have the texture, and the split may name the pair."""
    kind, colour = wanted.attributes.get("kind"), wanted.attributes.get("colour")
    is_kept = image.split != "testB" and (kind, colour) in HELD_OUT
    shows_texture = "texture" not in wanted.attributes or kind is None or KINDS[kind].solid
    return not select(image.objects, wanted) and shows_texture and not is_kept
