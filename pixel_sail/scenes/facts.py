"""What is surely true of the objects of an image, and so may be said of them: with the resolver's margins."""

from dataclasses import dataclass
from functools import cached_property
from math import dist

from pixel_sail.scenes.colours import HELD_OUT
from pixel_sail.scenes.resolver import Matches, resolve
from pixel_sail.scenes.types import (
    ANY,
    Attribute,
    Filter,
    Name,
    ObjectFacts,
    PositionQuery,
    Query,
    RelationQuery,
    SceneObject,
)

DIRECTIONS = ("left of", "right of", "above", "below")
WHERES = ("top left", "top right", "bottom left", "bottom right", "middle", "left", "right", "top", "bottom")
# longer side of the visible part, as a share of the image's short side; no size is said between the spans
_SIZES = {"small": (0, 0.235), "medium": (0.245, 0.39), "large": (0.42, 9)}


@dataclass(frozen=True)
class ImageFacts:
    """The objects of one image, its size in pixels and its split, and all that follows from them."""

    objects: list[SceneObject]
    width: int
    height: int
    split: str

    def matches(self, query: Query) -> Matches:
        return resolve(query, self.objects, self.width, self.height)

    def targets(self, query: Query) -> list[int] | None:
        """The objects that a query picks, in order; None where that is not clear."""
        matches = self.matches(query)
        return sorted(matches.sure) if matches.clear else None

    @cached_property
    def indices(self) -> range:
        return range(len(self.objects))

    @cached_property
    def places(self) -> dict[str, Matches]:
        """Which objects are surely, and possibly, at each of WHERES."""
        return {where: self.matches(PositionQuery(ANY, where=where)) for where in WHERES}

    @cached_property
    def relations(self) -> dict[tuple[str, int], Matches]:
        """(direction, anchor) -> which objects are surely, and possibly, there as seen from the anchor."""
        return {
            (direction, i): self.matches(RelationQuery(ANY, direction, Filter(index=i)))
            for direction in DIRECTIONS
            for i in self.indices
        }

    @cached_property
    def names(self) -> list[Name]:
        return [(thing.colour, thing.kind) for thing in self.objects]

    def with_own_name(self) -> list[int]:
        """The objects whose name no other object has."""
        return [i for i in self.indices if self.names.count(self.names[i]) == 1]

    def may_say(self, name: Name) -> bool:
        """Whether a name may occur in this image's split, even as that of an absent object.

        Names kept for testB occur in no other split.
        """
        return self.split == "testB" or (name[1], name[0]) not in HELD_OUT

    def values(self, attribute: Attribute) -> list[str]:
        return [thing.value(attribute) for thing in self.objects]

    def facts(self, i: int) -> ObjectFacts:
        """What a description of object `i` may say."""
        thing = self.objects[i]
        return ObjectFacts(
            size=self.size(i),
            colour=thing.colour,
            texture=thing.texture,
            kind=thing.kind,
            where=self.where(i),
            relation=self._relation(i),
            kind_count=self.values("kind").count(thing.kind),
        )

    def where(self, i: int) -> str:
        """The first of WHERES where the object surely is: the sure halves leave only the sure middle between them."""
        return next(where for where in WHERES if i in self.places[where].sure)

    def size(self, i: int) -> str | None:
        """The size class; None where so much is hidden that the visible part looks like another class."""
        low, high = _SIZES[self.objects[i].size_class]
        share = max(self.objects[i].bbox[2:]) / min(self.width, self.height)
        return self.objects[i].size_class if low < share < high else None

    def direction(self, i: int, anchor: int) -> str | None:
        """The first of DIRECTIONS in which object `i` surely lies from the anchor."""
        return next((direction for direction in DIRECTIONS if i in self.relations[direction, anchor].sure), None)

    def _relation(self, i: int) -> tuple[str, int] | None:
        """(direction, anchor): the nearest object with a name of its own to which there is a clear relation."""
        x, y = centre = self.objects[i].centroid
        anchors = [j for j in self.with_own_name() if j != i]
        for j in sorted(anchors, key=lambda j: dist(centre, self.objects[j].centroid)):
            anchor_x, anchor_y = self.objects[j].centroid
            far = {"left of": anchor_x - x, "right of": x - anchor_x, "above": anchor_y - y, "below": y - anchor_y}
            direction = max(DIRECTIONS, key=lambda direction: far[direction])
            if i in self.relations[direction, j].sure:
                return direction, j
        return None
