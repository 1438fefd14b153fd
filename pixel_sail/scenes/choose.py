"""Which expressions an image gets: candidates for each object, kept only where the resolver finds them unambiguous."""

from collections.abc import Iterator

import numpy as np

from pixel_sail.scenes.colours import COLOURS, HELD_OUT, TEXTURES
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import NUMBERS, RANKS, phrase, shuffled
from pixel_sail.scenes.queries import Filter, Objects, Query, resolve, select

Rng = np.random.Generator

TYPE_ODDS = {"attribute": 0.40, "position": 0.18, "relation": 0.155, "ordinal": 0.12, "size": 0.145}
SIDES = ("left", "right", "top", "bottom")
_WHERE = (*SIDES, "middle", "top left", "top right", "bottom left", "bottom right")
_RELATIONS = ("left of", "right of", "above", "below", "nearest to")
_ATTRIBUTE_SETS = {
    ("kind", "colour"): 4.0,
    ("kind",): 2.5,
    ("kind", "texture"): 2.0,
    ("kind", "colour", "texture"): 2.0,
    ("colour",): 1.0,
    ("texture",): 1.0,
    ("colour", "texture"): 1.0,
}
_BASE_SETS = {("kind",): 5.0, ("kind", "colour"): 2.0, ("colour",): 1.5, ("texture",): 1.0, (): 1.0}


def _filters(thing: dict, sets: dict[tuple[str, ...], float], rng: Rng) -> list[Filter]:
    """The filters that ``thing`` passes, in a random order that prefers the heavy ones. "Plain object" is not said."""
    keys = [keys for keys in sets if "texture" not in keys or thing["texture"] != "plain" or "kind" in keys]
    odds = np.array([sets[k] for k in keys])
    order = rng.choice(len(keys), len(keys), replace=False, p=odds / odds.sum())
    return [{key: thing[key] for key in keys[i]} for i in order]


def _candidates(kind: str, target: int, objects: Objects, rng: Rng) -> Iterator[Query]:
    """Queries of one type that may pick ``target``; where possible those first that choose among several."""
    thing = objects[target]
    if kind == "attribute":
        yield from ({"type": kind, "filter": wanted} for wanted in _filters(thing, _ATTRIBUTE_SETS, rng))
        return
    bases = _filters(thing, _BASE_SETS, rng)
    several = [wanted for wanted in bases if len(select(objects, wanted)) > 1]
    for wanted in several:
        count = len(select(objects, wanted))
        if kind == "position":
            ways = [{"where": where} for where in _WHERE] + [{"extreme": side} for side in SIDES]
        elif kind == "ordinal":
            ways = [{"rank": rank, "from": side} for rank in RANKS if rank <= count for side in SIDES]
        elif kind == "size":
            classes = ({"class": thing["size_class"]},) if thing["size_class"] != "medium" else ()
            ways = [{"extreme": "largest"}, {"extreme": "smallest"}, *classes]
        else:
            ways = list(_relations(target, objects, rng))
        yield from ({"type": kind, "filter": wanted, **way} for way in shuffled(rng, ways))
    if kind in ("position", "relation"):
        ways = [{"where": where} for where in _WHERE] if kind == "position" else list(_relations(target, objects, rng))
        yield from ({"type": kind, "filter": {"kind": thing["kind"]}, **way} for way in shuffled(rng, ways))


def _relations(target: int, objects: Objects, rng: Rng) -> Iterator[dict]:
    """Anchors that one short description picks, with each relation."""
    for i in shuffled(rng, tuple(i for i in range(len(objects)) if i != target))[:4]:
        for keys in (("kind",), ("kind", "colour")):
            anchor = {key: objects[i][key] for key in keys}
            if select(objects, anchor) == [i]:
                yield from ({"relation": relation, "anchor": anchor} for relation in _RELATIONS)
                break


def single(target: int, count: int, objects: Objects, width: int, height: int, rng: Rng) -> list[tuple[str, Query]]:
    """Up to ``count`` different (sentence, query) for one object, of different types where that is possible."""
    types = list(TYPE_ODDS)
    drawn = [types[i] for i in rng.choice(len(types), count, p=list(TYPE_ODDS.values()))]
    found: dict[str, Query] = {}
    # a type that has no unambiguous query for this object is made up for by the others, attributes first
    for kind in [*_without_repeats(drawn), "attribute", *shuffled(rng, types)]:
        if len(found) == count:
            break
        for query in _candidates(kind, target, objects, rng):
            matches = resolve(query, objects, width, height)
            if matches.clear and matches.sure == {target} and query not in found.values():
                found[phrase(query, rng)] = query
                break
    return list(found.items())


def _without_repeats(types: list[str]) -> list[str]:
    """Only attributes may come twice: there are many ways to name them."""
    return [kind for i, kind in enumerate(types) if kind == "attribute" or kind not in types[:i]]


def choose_refs(
    objects: Objects, width: int, height: int, split: str, rng: Rng
) -> list[tuple[int, list[tuple[str, Query]]]]:
    """RefCOCO: (object index, sentences). In testB mostly the objects of the held-out pairs."""
    refs = []
    for target, thing in enumerate(objects):
        new = (thing["kind"], thing["colour"]) in HELD_OUT
        if split == "testB" and not new and rng.random() > 0.2:
            continue
        sentences = single(target, int(rng.choice([2, 3], p=[0.35, 0.65])), objects, width, height, rng)
        if sentences:
            refs.append((target, sentences))
    return refs


def choose_grefs(
    objects: Objects, width: int, height: int, split: str, rng: Rng
) -> list[tuple[list[int], list[tuple[str, Query]]]]:
    """gRefCOCO: (object indices, sentences) for about two single, two multi and two empty references."""
    refs: list[tuple[list[int], list[tuple[str, Query]]]] = []
    for target in rng.permutation(len(objects))[:2].tolist():
        sentences = single(target, int(rng.integers(1, 3)), objects, width, height, rng)
        if sentences:
            refs.append(([target], sentences))
    refs += _multi(objects, width, height, rng)
    for query in _absent(objects, split, rng):
        texts = dict.fromkeys(phrase(query, rng) for _ in range(rng.integers(1, 3)))
        refs.append(([], [(text, query) for text in texts]))
    return refs


def _multi(objects: Objects, width: int, height: int, rng: Rng) -> list[tuple[list[int], list[tuple[str, Query]]]]:
    """Two references to different sets of two objects or more."""
    bases = [wanted for thing in objects for wanted in _filters(thing, _BASE_SETS, rng)]
    queries: list[Query] = []
    for wanted in shuffled(rng, bases):
        where = {"where": SIDES[rng.integers(4)]} if rng.random() < 0.4 or not wanted else {}
        queries.append({"type": "all", "filter": wanted, **where})
    first, second = (objects[i] for i in rng.permutation(len(objects))[:2])
    filters = [_filters(thing, {("kind",): 1.0, ("kind", "colour"): 1.0}, rng)[0] for thing in (first, second)]
    queries.insert(int(rng.integers(0, 5)), {"type": "pair", "filters": filters})
    found: dict[tuple[int, ...], list[tuple[str, Query]]] = {}
    for query in queries:
        matches = resolve(query, objects, width, height)
        targets = tuple(sorted(matches.sure))
        if matches.clear and 2 <= len(targets) <= max(NUMBERS) and targets not in found:
            texts = dict.fromkeys(phrase(query, rng, len(targets)) for _ in range(rng.integers(1, 3)))
            found[targets] = [(text, query) for text in texts]
        if len(found) == 2:
            break
    return [(list(targets), sentences) for targets, sentences in found.items()]


def _absent(objects: Objects, split: str, rng: Rng) -> list[Query]:
    """Two descriptions that fit nothing, near misses first: a kind that is there in a colour that it does not have."""
    kinds = sorted({thing["kind"] for thing in objects})
    colours = sorted({thing["colour"] for thing in objects})
    options: list[Filter] = []
    for _ in range(12):
        present = {"kind": kinds[rng.integers(len(kinds))]}
        missing = {"kind": list(KINDS)[rng.integers(len(KINDS))]}
        texture = {"texture": TEXTURES[rng.integers(1, len(TEXTURES))]}
        other = {"colour": list(COLOURS)[rng.integers(len(COLOURS))]}
        here = {"colour": colours[rng.integers(len(colours))]}
        styles = [present | here, present | other, present | texture, missing, missing | here, missing | texture, other]
        options.append(styles[rng.choice(len(styles), p=[0.3, 0.15, 0.1, 0.1, 0.2, 0.1, 0.05])])
    found: list[Query] = []
    for wanted in options:
        query = {"type": "attribute", "filter": wanted}
        unseen = split != "testB" and (wanted.get("kind"), wanted.get("colour")) in HELD_OUT
        textured = wanted.get("texture", "plain") == "plain" or KINDS[wanted.get("kind", "ball")].solid
        if not select(objects, wanted) and query not in found and textured and not unseen and len(found) < 2:
            found.append(query)
    return found
