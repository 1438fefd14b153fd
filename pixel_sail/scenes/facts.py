"""What is surely true of the objects of an image, and so may be said of them: with the resolver's margins."""

from dataclasses import dataclass
from functools import cached_property
from math import dist
from typing import Any

from pixel_sail.scenes.colours import HELD_OUT
from pixel_sail.scenes.queries import Matches, Objects, Query, resolve

SIDES = ("left of", "right of", "above", "below")
WHERES = ("top left", "top right", "bottom left", "bottom right", "middle", "left", "right", "top", "bottom")
# the longer side of what is visible, as a share of the image's short side; between the spans no size is said
_SIZES = {"small": (0, 0.235), "medium": (0.245, 0.39), "large": (0.42, 9)}

Name = tuple[str, str]  # (colour, kind): what an object is called in an option or as an anchor


@dataclass(frozen=True)
class Picture:
    """One image's ``objects`` (see queries.py), its size in pixels and its split."""

    objects: Objects
    width: int
    height: int
    split: str

    def matches(self, query: Query) -> Matches:
        return resolve(query, self.objects, self.width, self.height)

    def find(self, query: Query) -> list[int] | None:
        """The objects that a query picks, in order; None where that is not clear."""
        matches = self.matches(query)
        return sorted(matches.sure) if matches.clear else None

    @cached_property
    def indices(self) -> range:
        return range(len(self.objects))

    @cached_property
    def places(self) -> dict[str, Matches]:
        """Which objects are surely, and possibly, at each of WHERES."""
        return {where: self.matches({"type": "position", "filter": {}, "where": where}) for where in WHERES}

    @cached_property
    def relations(self) -> dict[tuple[str, int], Matches]:
        """(relation, anchor) -> which objects are surely, and possibly, there as seen from the anchor."""
        return {
            (side, i): self.matches({"type": "relation", "filter": {}, "relation": side, "anchor": {"is": i}})
            for side in SIDES
            for i in self.indices
        }

    @cached_property
    def names(self) -> list[Name]:
        return [(thing["colour"], thing["kind"]) for thing in self.objects]

    def may_say(self, name: Name) -> bool:
        """Pairs kept for testB are named in no other split, not even as what is absent."""
        return self.split == "testB" or (name[1], name[0]) not in HELD_OUT

    def values(self, key: str) -> list[str]:
        return [thing[key] for thing in self.objects]

    def facts(self, i: int) -> dict[str, Any]:
        """What a description of object ``i`` says, None where nothing is sure (JSON-able)."""
        thing = self.objects[i]
        return {
            "size": self.size(i),
            "colour": thing["colour"],
            "texture": thing["texture"],
            "kind": thing["kind"],
            "where": self.where(i),
            "relation": self._relation(i),
            "of_kind": self.values("kind").count(thing["kind"]),
        }

    def where(self, i: int) -> str:
        """The first of WHERES where the object surely is: the sure halves leave only the sure middle between them."""
        return next(where for where in WHERES if i in self.places[where].sure)

    def size(self, i: int) -> str | None:
        """The size class, unless so much is hidden that what is visible would be given another."""
        low, high = _SIZES[self.objects[i]["size_class"]]
        share = max(self.objects[i]["bbox"][2:]) / min(self.width, self.height)
        return self.objects[i]["size_class"] if low < share < high else None

    def _relation(self, i: int) -> list[Any] | None:
        """[side, anchor]: the nearest object whose name no other has, and to which there is a clear relation."""
        x, y = centre = self.objects[i]["centroid"]
        anchors = [j for j in self.indices if self.names.count(self.names[j]) == 1 and j != i]
        for j in sorted(anchors, key=lambda j: dist(centre, self.objects[j]["centroid"])):
            ax, ay = self.objects[j]["centroid"]
            far = {"left of": ax - x, "right of": x - ax, "above": ay - y, "below": y - ay}
            side = max(SIDES, key=lambda side: far[side])
            if i in self.relations[side, j].sure:
                return [side, j]
        return None
