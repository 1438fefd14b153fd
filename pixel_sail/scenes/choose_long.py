"""The longer expressions of RefCOCOg: attributes plus a relation or a position, as far as they are unambiguous."""

import numpy as np

from pixel_sail.scenes.facts import SIDES, WHERES, Picture
from pixel_sail.scenes.language import phrase, shuffled
from pixel_sail.scenes.queries import Query

Rng = np.random.Generator


def choose_long_refs(picture: Picture, rng: Rng) -> list[tuple[int, list[tuple[str, Query]]]]:
    """(object, one or two sentences) for each object that has such an expression."""
    refs = []
    for target in picture.indices:
        count, found = int(rng.integers(1, 3)), {}
        options = _candidates(picture, target)
        for query in shuffled(rng, options):
            if len(found) < count and query not in found.values() and picture.find(query) == [target]:
                found[phrase(query, rng)] = query
        if found:
            refs.append((target, list(found.items())))
    return refs


def _candidates(picture: Picture, target: int) -> list[Query]:
    """Relations to things that are named by colour and kind, and places; the target by colour, kind and texture."""
    thing = picture.objects[target]
    keys = ("kind", "colour") if thing["texture"] == "plain" else ("kind", "colour", "texture")
    wanted = {key: thing[key] for key in keys}
    found: list[Query] = [
        {"type": "position", "filter": wanted, "where": where}
        for where in WHERES
        if target in picture.places[where].sure
    ]
    for j in picture.indices:
        if picture.names.count(picture.names[j]) != 1 or j == target:
            continue
        anchor = dict(zip(("colour", "kind"), picture.names[j], strict=True))
        sides = [side for side in SIDES if target in picture.relations[side, j].sure]
        found += [{"type": "relation", "filter": wanted, "relation": side, "anchor": anchor} for side in sides]
    return found
