"""The longer expressions of RefCOCOg: attributes plus a relation or a position, where they are unambiguous."""

from pixel_sail.scenes.facts import DIRECTIONS, WHERES, ImageFacts
from pixel_sail.scenes.language import phrase, shuffled
from pixel_sail.scenes.types import PositionQuery, Query, Reference, RelationQuery, Rng


def choose_long_refs(image: ImageFacts, rng: Rng) -> list[Reference]:
    """A reference with one or two sentences for each object that has such an expression."""
    refs = []
    for target in image.indices:
        count, sentences = int(rng.integers(1, 3)), {}
        for query in shuffled(rng, _candidates(image, target)):
            if len(sentences) < count and query not in sentences.values() and image.targets(query) == [target]:
                sentences[phrase(query, rng)] = query
        if sentences:
            refs.append(Reference([target], list(sentences.items())))
    return refs


def _candidates(image: ImageFacts, target: int) -> list[Query]:
    """Places, and relations to objects named by colour and kind; the target by colour, kind and texture."""
    thing = image.objects[target]
    wanted = thing.filter(("kind", "colour") if thing.texture == "plain" else ("kind", "colour", "texture"))
    queries: list[Query] = [
        PositionQuery(wanted, where=where) for where in WHERES if target in image.places[where].sure
    ]
    for j in image.with_own_name():
        if j != target:
            anchor = image.objects[j].filter(("colour", "kind"))
            sides = [direction for direction in DIRECTIONS if target in image.relations[direction, j].sure]
            queries += [RelationQuery(wanted, direction, anchor) for direction in sides]
    return queries
