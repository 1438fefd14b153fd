"""What an expression means: structured queries, and the resolver that says which objects they pick, with margins.

A query is a JSON-able dict. A *filter* is a dict with any of ``kind``, ``colour``, ``texture``; {} is any object. What
is asked of a prompted region uses two more keys: ``is``, the index of the one object meant, and ``except``, a list of
indices that are left out.

    {"type": "attribute", "filter": F}
    {"type": "position", "filter": F, "where": "left"|"right"|"top"|"bottom"|"middle"|"top left"|...}
    {"type": "position", "filter": F, "extreme": "left"|"right"|"top"|"bottom"}
    {"type": "relation", "filter": F, "relation": "left of"|"right of"|"above"|"below"|"nearest to", "anchor": F}
    {"type": "ordinal", "filter": F, "rank": 1.., "from": "left"|"right"|"top"|"bottom"}
    {"type": "size", "filter": F, "extreme": "largest"|"smallest"}
    {"type": "size", "filter": F, "class": "small"|"large"}
    {"type": "all", "filter": F} and {"type": "all", "filter": F, "where": ...}      several targets
    {"type": "pair", "filters": [F, F]}                                             two targets
    {"type": "beside", "filter": F, "relation": "left of"|..., "anchor": F}         directly next to it, on that side
    {"type": "between", "filter": F, "anchors": [F, F]}
    {"type": "compare", "filter": F, "size": "larger"|"smaller", "anchor": F}       any number of targets

An object is a dict with at least kind, colour, texture, size_class, size_px, area (visible pixels) and centroid (x, y)
in pixels. ``resolve`` returns two sets of indices: *sure* (match with a margin) and *possible* (match at all, or
nearly). A query is unambiguous where the two are equal.
"""

from typing import Any, NamedTuple

Query = dict[str, Any]
Filter = dict[str, Any]
Objects = list[dict[str, Any]]

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
    """Indices of the objects with all the wanted attributes, in order."""
    looks = [(key, value) for key, value in wanted.items() if key not in ("is", "except")]
    found = [i for i, o in enumerate(objects) if all(o[key] == value for key, value in looks)]
    if "is" in wanted or "except" in wanted:
        found = [i for i in found if i == wanted.get("is", i) and i not in wanted.get("except", ())]
    return found


def resolve(query: Query, objects: Objects, width: int, height: int) -> Matches:
    """Which objects a query picks in an image of ``width`` x ``height`` pixels; ValueError for an unknown type."""
    kind = query["type"]
    if kind == "pair":
        both = [select(objects, wanted) for wanted in query["filters"]]
        found = frozenset(both[0] + both[1])
        return Matches(found if [len(one) for one in both] == [1, 1] else NOBODY, found)
    chosen = select(objects, query["filter"])
    if kind == "attribute" or (kind == "all" and "where" not in query):
        return Matches(frozenset(chosen), frozenset(chosen))
    places = {i: (objects[i]["centroid"][0] / width, objects[i]["centroid"][1] / height) for i in range(len(objects))}
    if kind in ("position", "all"):
        return (
            _extreme(chosen, places, query["extreme"]) if "extreme" in query else _where(chosen, places, query["where"])
        )
    if kind in ("relation", "beside"):
        return _relation(query, chosen, objects, width, height)
    if kind == "between":
        return _between([select(objects, wanted) for wanted in query["anchors"]], chosen, objects)
    if kind == "compare":
        return _compare(select(objects, query["anchor"]), chosen, objects, query["size"])
    if kind == "ordinal":
        return _ordinal(chosen, places, query["rank"], query["from"])
    if kind == "size":
        return (
            _size_class(chosen, objects, query["class"])
            if "class" in query
            else _size(chosen, objects, query["extreme"])
        )
    raise ValueError(f"unknown query type {kind!r}")


def _towards(place: tuple[float, float], side: str) -> float:
    """Distance from a side of the image, as a share of the image: 0 at the side, 1 at the opposite one."""
    x, y = place
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]


def _where(chosen: list[int], places: dict[int, tuple[float, float]], where: str) -> Matches:
    if where == "middle":
        far = {i: max(abs(places[i][0] - 0.5), abs(places[i][1] - 0.5)) for i in chosen}
        sure, possible = SURE_MIDDLE, POSSIBLE_MIDDLE
    else:
        far = {i: max(_towards(places[i], side) for side in where.split()) for i in chosen}
        corner = " " in where
        sure, possible = (SURE_CORNER, POSSIBLE_CORNER) if corner else (SURE_HALF, POSSIBLE_HALF)
    return Matches(frozenset(i for i in chosen if far[i] < sure), frozenset(i for i in chosen if far[i] < possible))


def _extreme(chosen: list[int], places: dict[int, tuple[float, float]], side: str) -> Matches:
    if not chosen:
        return Matches(NOBODY, NOBODY)
    far = {i: _towards(places[i], side) for i in chosen}
    close = frozenset(i for i in chosen if far[i] < min(far.values()) + GAP)
    return Matches(close if len(close) == 1 else NOBODY, close)


def _relation(query: Query, chosen: list[int], objects: Objects, width: int, height: int) -> Matches:
    anchors = select(objects, query["anchor"])
    if len(anchors) != 1:
        return Matches(NOBODY, frozenset(chosen))
    x, y = objects[anchors[0]]["centroid"]
    offsets = {i: (objects[i]["centroid"][0] - x, objects[i]["centroid"][1] - y) for i in chosen if i != anchors[0]}
    if query["relation"] == "nearest to":
        return _nearest(offsets, min(width, height))
    along, sign, side = {
        "left of": (0, -1, width),
        "right of": (0, 1, width),
        "above": (1, -1, height),
        "below": (1, 1, height),
    }[query["relation"]]
    ahead = {i: (sign * offset[along], abs(offset[1 - along])) for i, offset in offsets.items()}
    if query["type"] == "beside":
        near = _nearest({i: offsets[i] for i, (a, b) in ahead.items() if b < POSSIBLE_BESIDE * a}, min(width, height))
        sure = frozenset(
            i for i in near.sure if ahead[i][0] > RELATION_GAP * side and ahead[i][1] < SURE_BESIDE * ahead[i][0]
        )
        return Matches(sure, near.possible)
    sure = frozenset(i for i, (a, b) in ahead.items() if a > RELATION_GAP * side and b < 1.5 * a)
    return Matches(sure, frozenset(i for i, (a, _) in ahead.items() if a > 0))


def _nearest(offsets: dict[int, tuple[float, float]], short_px: int) -> Matches:
    if not offsets:
        return Matches(NOBODY, NOBODY)
    far = {i: (dx * dx + dy * dy) ** 0.5 for i, (dx, dy) in offsets.items()}
    limit = min(far.values()) * NEAR_RATIO + NEAR_GAP * short_px
    close = frozenset(i for i in far if far[i] < limit)
    return Matches(close if len(close) == 1 else NOBODY, close)


def _between(anchors: list[list[int]], chosen: list[int], objects: Objects) -> Matches:
    """Near the line that joins the centres of two objects, and not near its ends."""
    if [len(one) for one in anchors] != [1, 1] or anchors[0] == anchors[1]:
        return Matches(NOBODY, frozenset(chosen))
    (x0, y0), (x1, y1) = (objects[one[0]]["centroid"] for one in anchors)
    dx, dy = x1 - x0, y1 - y0
    squared = max(dx * dx + dy * dy, 1e-9)
    sure, possible = set(), set()
    for i in set(chosen) - {anchors[0][0], anchors[1][0]}:
        x, y = objects[i]["centroid"][0] - x0, objects[i]["centroid"][1] - y0
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
    steps = {}
    for i in set(chosen) - set(anchors):
        area = (objects[i]["area"] / objects[anchors[0]]["area"]) ** sign
        length = (objects[i]["size_px"] / objects[anchors[0]]["size_px"]) ** sign
        steps[i] = (area, length)
    sure = frozenset(i for i, (a, n) in steps.items() if a > AREA_RATIO and n > LENGTH_RATIO)
    opposite = {i for i, (a, n) in steps.items() if a < 1 / AREA_RATIO and n < 1 / LENGTH_RATIO}
    return Matches(sure, frozenset(steps.keys() - opposite))


def _ordinal(chosen: list[int], places: dict[int, tuple[float, float]], rank: int, side: str) -> Matches:
    order = sorted(chosen, key=lambda i: _towards(places[i], side))
    steps = [_towards(places[b], side) - _towards(places[a], side) for a, b in zip(order, order[1:], strict=False)]
    if rank > len(order) or any(step < ORDINAL_GAP for step in steps):
        return Matches(NOBODY, frozenset(chosen))
    found = frozenset([order[rank - 1]])
    return Matches(found, found)


def _size(chosen: list[int], objects: Objects, extreme: str) -> Matches:
    """Area and length must agree: a long thin ladder is neither larger nor smaller than a ball."""
    if not chosen:
        return Matches(NOBODY, NOBODY)
    sign = 1 if extreme == "largest" else -1
    area = {i: objects[i]["area"] ** sign for i in chosen}
    length = {i: objects[i]["size_px"] ** sign for i in chosen}
    top = frozenset(
        i
        for i in chosen
        if area[i] * AREA_RATIO > max(area.values()) or length[i] * LENGTH_RATIO > max(length.values())
    )
    return Matches(top if len(top) == 1 else NOBODY, top)


def _size_class(chosen: list[int], objects: Objects, name: str) -> Matches:
    """ "The small mug": those of the class, clearly apart in area from all others that the filter admits."""
    inside = frozenset(i for i in chosen if objects[i]["size_class"] == name)
    if not inside:
        return Matches(NOBODY, NOBODY)
    sign = 1 if name == "large" else -1
    least = min(objects[i]["area"] ** sign for i in inside)
    near = frozenset(i for i in chosen if objects[i]["area"] ** sign * AREA_RATIO > least)
    return Matches(inside, inside | near)
