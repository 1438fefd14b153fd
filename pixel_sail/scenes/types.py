"""The nouns of the drawn world: objects, queries that pick some of them, and all that is known about one image.

Lengths and areas are in pixels of the image, points are (x, y), boxes (x, y, width, height). An object is referred to
by its index in the image, counted from back to front. `knowledge.py` turns these nouns into the JSON of scenes.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NotRequired, TypedDict

import numpy as np

from pixel_sail.types import RLE

Rng = np.random.Generator
Attribute = Literal["kind", "colour", "texture"]
Name = tuple[str, str]  # (colour, kind): what an object is called in an option or as an anchor
Turn = tuple[str, str]  # question, answer


class Request(TypedDict):
    """What determines the bytes of a dataset; scenes.json stores it."""

    generator_version: int
    images: int
    seed: int
    long_side_px: int
    style: NotRequired[str]  # absent for "day"
    image_text: NotRequired[bool]  # also image_text/ and text/; absent without
    lessons: NotRequired[bool]  # also same_train.jsonl, ...; absent without


class ImageEntry(TypedDict):
    """An image in the annotation files."""

    id: int  # from 1
    width: int
    height: int
    file_name: str


class Segment(TypedDict):
    """A segment in COCO's panoptic files."""

    id: int
    category_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int
    description: NotRequired[str]  # only in Pix2Cap


@dataclass(frozen=True)
class SceneObject:
    """What is known about one object of an image."""

    kind: str
    colour: str
    texture: str
    size_class: str  # small, medium or large: the size that it was drawn with
    size_px: float  # longer side of the whole object, before it was turned
    depth: int  # 0 is furthest back
    bbox: tuple[int, int, int, int]  # of the visible pixels
    area: int  # visible pixels
    visible_share: float  # of all its pixels, those outside the image included
    centroid: tuple[float, float]  # of the visible pixels
    segmentation: RLE  # the visible pixels
    ann_id: int = 0  # from 1, unique in the dataset; 0 until the objects of all images are numbered

    def value(self, attribute: Attribute) -> str:
        return getattr(self, attribute)

    def filter(self, attributes: tuple[Attribute, ...]) -> Filter:
        """The filter that asks for these attributes of the object."""
        return Filter({attribute: self.value(attribute) for attribute in attributes})


@dataclass(frozen=True)
class Filter:
    """Which objects are admitted: `Filter()` admits all. `index` and `excluded` serve questions about prompted regions.

    Filters are equal whatever the order of their attributes; scenes.json keeps the order.
    """

    attributes: dict[Attribute, str] = field(default_factory=dict)  # the values that an object must have
    index: int | None = None  # this object only; "is" in JSON
    excluded: tuple[int, ...] = ()  # without these objects; "except" in JSON


ANY = Filter()


@dataclass(frozen=True)
class AttributeQuery:
    """The object that the filter admits."""

    type: ClassVar[str] = "attribute"
    filter: Filter


@dataclass(frozen=True)
class PositionQuery:
    """The object at a place, or the outermost on a side. Only one of `where` and `extreme` is given."""

    type: ClassVar[str] = "position"
    filter: Filter
    where: str | None = None  # left, right, top, bottom, middle, or a corner such as "top left"
    extreme: str | None = None  # left, right, top or bottom


@dataclass(frozen=True)
class RelationQuery:
    type: ClassVar[str] = "relation"
    filter: Filter
    relation: str  # left of, right of, above, below or nearest to
    anchor: Filter


@dataclass(frozen=True)
class BesideQuery:
    """The object directly next to the anchor, on one side."""

    type: ClassVar[str] = "beside"
    filter: Filter
    relation: str  # left of, right of, above or below
    anchor: Filter


@dataclass(frozen=True)
class BetweenQuery:
    type: ClassVar[str] = "between"
    filter: Filter
    anchors: tuple[Filter, Filter]


@dataclass(frozen=True)
class OrdinalQuery:
    """The `rank`-th object, counted from a side."""

    type: ClassVar[str] = "ordinal"
    filter: Filter
    rank: int  # from 1
    side: str  # left, right, top or bottom; "from" in JSON


@dataclass(frozen=True)
class SizeQuery:
    """The largest or smallest object, or the one of a size class. Only one of `extreme` and `size_class` is given."""

    type: ClassVar[str] = "size"
    filter: Filter
    extreme: str | None = None  # largest or smallest
    size_class: str | None = None  # small or large; "class" in JSON


@dataclass(frozen=True)
class CompareQuery:
    """Any number of objects: all that are larger, or smaller, than the anchor."""

    type: ClassVar[str] = "compare"
    filter: Filter
    size: str  # larger or smaller
    anchor: Filter


@dataclass(frozen=True)
class AllQuery:
    """Any number of objects: all that the filter admits, or those of them in one half of the image."""

    type: ClassVar[str] = "all"
    filter: Filter
    where: str | None = None  # left, right, top or bottom


@dataclass(frozen=True)
class PairQuery:
    """Two objects, one for each filter."""

    type: ClassVar[str] = "pair"
    filters: tuple[Filter, Filter]


Query = (
    AttributeQuery
    | PositionQuery
    | RelationQuery
    | BesideQuery
    | BetweenQuery
    | OrdinalQuery
    | SizeQuery
    | CompareQuery
    | AllQuery
    | PairQuery
)


@dataclass(frozen=True)
class Reference:
    """Objects with the expressions that mean exactly them, as (sentence, query)."""

    targets: list[int]  # one in RefCOCO(g); none, one or several in gRefCOCO
    sentences: list[tuple[str, Query]]


@dataclass(frozen=True)
class ObjectFacts:
    """What may be said of an object because it is sure."""

    size: str | None  # None where occlusion makes the size class doubtful
    colour: str
    texture: str
    kind: str
    where: str  # one of facts.WHERES
    relation: tuple[str, int] | None  # (direction, anchor), the anchor an object with a name of its own
    kind_count: int  # objects of this kind in the image, itself included


@dataclass(frozen=True)
class MultipleChoice:
    """A question about one object with four options."""

    object: int
    topic: str  # a key of multiple_choice.TOPICS
    question: str  # with a line for each option
    answer: str  # the letter of the right option
    right: str  # the text of the right option


@dataclass(frozen=True)
class RegionRequest:
    """A request for other objects relative to prompted ones (VRES of PerBench).

    The tags <obj0>, <obj1>, ... are numbered in the order of their mention: first the prompts, then the targets.
    """

    topic: str  # a key of region_requests.ODDS
    query: Query
    prompts: list[int]
    targets: list[int]
    question: str
    answer: str


@dataclass(frozen=True)
class RegionConversation:
    """Turns that call the regions <region1>, <region2>, ..."""

    regions: list[int | RLE]  # an object, or the mask of a part of one
    turns: list[Turn]


@dataclass(frozen=True)
class ImageConversation:
    shows_image: bool  # False: the turns need no image
    turns: list[Turn]


@dataclass(frozen=True)
class RegionItems:
    """Questions and descriptions about the regions of one image."""

    facts: list[ObjectFacts]  # of each object
    pix2cap: list[str]  # a description of each object
    perbench: list[str]  # another description of each object
    multiple_choice: list[MultipleChoice]
    requests: list[RegionRequest]
    sam: list[tuple[int, str]]  # (object, description) of some objects
    osprey: dict[str, RegionConversation]  # name of the file -> conversation; only for training images
    llava: list[ImageConversation]  # only for training images


@dataclass(frozen=True)
class CaptionPhrase:
    span: tuple[int, int]  # characters of the caption
    objects: list[int]


@dataclass(frozen=True)
class GroundedCaption:
    text: str
    phrases: list[CaptionPhrase]


@dataclass(frozen=True)
class ReferringCaption:
    """A caption made of phrases for single objects."""

    text: str
    phrases: list[tuple[str, int]]  # (phrase, object)


@dataclass(frozen=True)
class GroundedQuestion:
    question: str
    objects: list[int]  # from left to right
    answer: str | None  # with {seg} for each object


@dataclass(frozen=True)
class ReasoningQuestion:
    """Objects that must be reasoned out from what they are good for."""

    question: str
    phrase: str  # the same as a noun phrase
    targets: list[int]
    doubtful: list[int]  # objects that some would count as targets: not scored


@dataclass(frozen=True)
class GroundedTexts:
    """Texts about one image whose phrases or answers have masks."""

    caption: GroundedCaption
    referring: ReferringCaption
    questions: list[GroundedQuestion]
    reasoning: ReasoningQuestion | None  # None where the image has no target


@dataclass(frozen=True)
class ObjectPolygons:
    """An object as polygons; None where polygons cannot describe it (see outline.py)."""

    coco: list[list[float]] | None  # [[x, y, x, y, ...], ...]
    labelme: dict[str, list[list[list[int]]]] | None  # label -> [[[x, y], ...], ...]; only for reasoning questions


@dataclass(frozen=True)
class ImageRecord:
    """One drawn image and all its annotations."""

    image: ImageEntry
    split: str  # train, val, testA or testB
    objects: list[SceneObject]
    refs: list[Reference]  # RefCOCO
    grefs: list[Reference]  # gRefCOCO
    long_refs: list[Reference]  # RefCOCOg
    regions: RegionItems
    grounded: GroundedTexts
    polygons: list[ObjectPolygons]  # of each object
    background: Segment
    many_requests: list[RegionRequest]  # for requests_train.jsonl; only for training images
    lessons: dict[str, list[RegionRequest]]  # by lesson, for same_train.jsonl, ...; only for training images
