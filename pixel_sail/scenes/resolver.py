"""Which objects a query picks, with margins.

`resolve` returns two sets of indices: *sure* (the query fits with a margin) and *possible* (it fits, or nearly fits). A
query is unambiguous where the two are equal.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pixel_sail.scenes.types import (
    AllQuery,
    AttributeQuery,
    BesideQuery,
    BetweenQuery,
    CompareQuery,
    Filter,
    OrdinalQuery,
    PairQuery,
    PositionQuery,
    Query,
    RelationQuery,
    SceneObject,
    SizeQuery,
)

Objects = Sequence[SceneObject]
Places = dict[int, tuple[float, float]]  # object -> its centre as shares of the image's width and height

AREA_RATIO = 1.25  # between the largest and the next, and so on
LENGTH_RATIO = 1.1
GAP = 0.08  # between the outermost and the next, as a share of the image's side
ORDINAL_GAP = 0.06
RELATION_GAP = 0.1
SURE_HALF, POSSIBLE_HALF = 0.42, 0.54
SURE_MIDDLE, POSSIBLE_MIDDLE = 0.12, 0.24
SURE_CORNER, POSSIBLE_CORNER = 0.36, 0.5
NEAR_RATIO, NEAR_GAP = 1.25, 0.04
SURE_BESIDE, POSSIBLE_BESIDE = 0.7, 1.4  # how far to the side, as a share of how far ahead
SURE_BETWEEN, POSSIBLE_BETWEEN = 0.2, 0.4  # off the line between the two, as a share of its length
END_SURE, END_POSSIBLE = 0.25, 0.05  # from either end of that line


class Matches(NamedTuple):
    sure: frozenset[int]
    possible: frozenset[int]

    @property
    def clear(self) -> bool:
        return self.sure == self.possible


NOBODY: frozenset[int] = frozenset()


def select(objects: Objects, wanted: Filter) -> list[int]:
    """Indices of the objects that a filter admits, in order."""
    return [
        i
        for i, candidate in enumerate(objects)
        if wanted.index in (None, i)
        and i not in wanted.excluded
        and all(candidate.value(attribute) == value for attribute, value in wanted.attributes.items())
    ]


def resolve(query: Query, objects: Objects, width: int, height: int) -> Matches:
    """Return which objects a query picks in an image of `width` x `height` pixels."""
    if isinstance(query, PairQuery):
        first, second = (select(objects, wanted) for wanted in query.filters)
        either = frozenset(first + second)
        return Matches(either if len(first) == len(second) == 1 else NOBODY, either)
    chosen = select(objects, query.filter)
    places = {i: (objects[i].centroid[0] / width, objects[i].centroid[1] / height) for i in range(len(objects))}
    match query:
        case AttributeQuery() | AllQuery(where=None):
            return Matches(frozenset(chosen), frozenset(chosen))
        case PositionQuery(extreme=str(side)):
            return _extreme(chosen, places, side)
        case PositionQuery(where=str(where)) | AllQuery(where=str(where)):
            return _where(chosen, places, where)
        case RelationQuery() | BesideQuery():
            return _relation(query, chosen, objects, width, height)
        case BetweenQuery():
            return _between([select(objects, anchor) for anchor in query.anchors], chosen, objects)
        case CompareQuery():
            return _compare(select(objects, query.anchor), chosen, objects, query.size)
        case OrdinalQuery():
            return _ordinal(chosen, places, query.rank, query.side)
        case SizeQuery(size_class=str(size_class)):
            return _size_class(chosen, objects, size_class)
        case SizeQuery(extreme=str(extreme)):
            return _size(chosen, objects, extreme)
    raise ValueError(f"not a complete query: {query!r}")


def _only(candidates: frozenset[int]) -> Matches:
    """The only candidate is sure; of several each is possible and none is sure."""
    return Matches(candidates if len(candidates) == 1 else NOBODY, candidates)


def _towards(place: tuple[float, float], side: str) -> float:
    """Distance from a side of the image, as a share of the image: 0 at the side, 1 at the opposite one."""
    x, y = place
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]


def _where(chosen: list[int], places: Places, where: str) -> Matches:
    if where == "middle":
        far = {i: max(abs(places[i][0] - 0.5), abs(places[i][1] - 0.5)) for i in chosen}
        sure, possible = SURE_MIDDLE, POSSIBLE_MIDDLE
    else:
        far = {i: max(_towards(places[i], side) for side in where.split()) for i in chosen}
        corner = " " in where
        sure, possible = (SURE_CORNER, POSSIBLE_CORNER) if corner else (SURE_HALF, POSSIBLE_HALF)
    return Matches(frozenset(i for i in chosen if far[i] < sure), frozenset(i for i in chosen if far[i] < possible))


def _extreme(chosen: list[int], places: Places, side: str) -> Matches:
    far = {i: _towards(places[i], side) for i in chosen}
    return _only(frozenset(i for i in chosen if far[i] < min(far.values()) + GAP))


def _relation(
    query: RelationQuery | BesideQuery, chosen: list[int], objects: Objects, width: int, height: int
) -> Matches:
    anchors = select(objects, query.anchor)
    if len(anchors) != 1:
        return Matches(NOBODY, frozenset(chosen))
    x, y = objects[anchors[0]].centroid
    offsets = {i: (objects[i].centroid[0] - x, objects[i].centroid[1] - y) for i in chosen if i != anchors[0]}
    if query.relation == "nearest to":
        return _nearest(offsets, min(width, height))
    along, sign, side = {
        "left of": (0, -1, width),
        "right of": (0, 1, width),
        "above": (1, -1, height),
        "below": (1, 1, height),
    }[query.relation]
    ahead = {i: (sign * offset[along], abs(offset[1 - along])) for i, offset in offsets.items()}
    if isinstance(query, BesideQuery):
        near = _nearest({i: offsets[i] for i, (a, b) in ahead.items() if b < POSSIBLE_BESIDE * a}, min(width, height))
        sure = frozenset(
            i for i in near.sure if ahead[i][0] > RELATION_GAP * side and ahead[i][1] < SURE_BESIDE * ahead[i][0]
        )
        return Matches(sure, near.possible)
    sure = frozenset(i for i, (a, b) in ahead.items() if a > RELATION_GAP * side and b < 1.5 * a)
    return Matches(sure, frozenset(i for i, (a, _) in ahead.items() if a > 0))


def _nearest(offsets: Places, short_px: int) -> Matches:
    far = {i: (dx * dx + dy * dy) ** 0.5 for i, (dx, dy) in offsets.items()}
    return _only(frozenset(i for i in far if far[i] < min(far.values()) * NEAR_RATIO + NEAR_GAP * short_px))


def _between(anchors: list[list[int]], chosen: list[int], objects: Objects) -> Matches:
    """Near the line that joins the centres of two objects, and not near its ends."""
    first, second = anchors
    if not len(first) == len(second) == 1 or first == second:
        return Matches(NOBODY, frozenset(chosen))
    (x0, y0), (x1, y1) = objects[first[0]].centroid, objects[second[0]].centroid
    dx, dy = x1 - x0, y1 - y0
    squared = max(dx * dx + dy * dy, 1e-9)
    sure, possible = set(), set()
    for i in set(chosen) - {first[0], second[0]}:
        x, y = objects[i].centroid[0] - x0, objects[i].centroid[1] - y0
        end = min((x * dx + y * dy) / squared, 1 - (x * dx + y * dy) / squared)
        off = abs(x * dy - y * dx) / squared
        if end > END_POSSIBLE and off < POSSIBLE_BETWEEN:
            possible.add(i)
        if end > END_SURE and off < SURE_BETWEEN:
            sure.add(i)
    return Matches(frozenset(sure), frozenset(possible))


def _compare(anchors: list[int], chosen: list[int], objects: Objects, size: str) -> Matches:
    """Larger (smaller) in area and in length; possible are all that are not as clearly the opposite."""
    if len(anchors) != 1:
        return Matches(NOBODY, frozenset(chosen))
    sign = 1 if size == "larger" else -1
    anchor = objects[anchors[0]]
    ratios = {
        i: ((objects[i].area / anchor.area) ** sign, (objects[i].size_px / anchor.size_px) ** sign)
        for i in set(chosen) - set(anchors)
    }
    sure = frozenset(i for i, (area, length) in ratios.items() if area > AREA_RATIO and length > LENGTH_RATIO)
    opposite = {i for i, (area, length) in ratios.items() if area < 1 / AREA_RATIO and length < 1 / LENGTH_RATIO}
    return Matches(sure, frozenset(ratios.keys() - opposite))


def _ordinal(chosen: list[int], places: Places, rank: int, side: str) -> Matches:
    order = sorted(chosen, key=lambda i: _towards(places[i], side))
    steps = [_towards(places[b], side) - _towards(places[a], side) for a, b in zip(order, order[1:], strict=False)]
    if rank > len(order) or any(step < ORDINAL_GAP for step in steps):
        return Matches(NOBODY, frozenset(chosen))
    return _only(frozenset([order[rank - 1]]))


def _size(chosen: list[int], objects: Objects, extreme: str) -> Matches:
    """Area and length must agree: a long thin ladder is neither larger nor smaller than a ball."""
    sign = 1 if extreme == "largest" else -1
    area = {i: objects[i].area ** sign for i in chosen}
    length = {i: objects[i].size_px ** sign for i in chosen}
    return _only(
        frozenset(
            i
            for i in chosen
            if area[i] * AREA_RATIO > max(area.values()) or length[i] * LENGTH_RATIO > max(length.values())
        )
    )


def _size_class(chosen: list[int], objects: Objects, size_class: str) -> Matches:
    """ "The small mug": the objects of the class, clearly apart in area from all others that the filter admits."""
    inside = frozenset(i for i in chosen if objects[i].size_class == size_class)
    if not inside:
        return Matches(NOBODY, NOBODY)
    sign = 1 if size_class == "large" else -1
    least = min(objects[i].area ** sign for i in inside)
    near = frozenset(i for i in chosen if objects[i].area ** sign * AREA_RATIO > least)
    return Matches(inside, inside | near)
