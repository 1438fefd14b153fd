"""Regions that a visitor draws: shapes from the browser to pixels, and the names that people give them in questions.

The regions of the page are called A, B, C, ...; to the model they are <Prompt0>, <Prompt1>, <Prompt2>, ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from pixel_sail.data.masks import unite
from pixel_sail.data.regions import Box, Points, Region, Scribble, draw_region, names_region
from pixel_sail.errors import UserError
from pixel_sail.tokens import PROMPTS
from pixel_sail.types import RLE, Click

COLOURS = ("#e6194b", "#1f9d3a", "#4363d8", "#f58231", "#911eb4")  # of region A, B, ...
NAMES = "ABCDE"
MAX_SHAPES = 100
MAX_VERTICES = 5_000  # of all shapes together
CLICK_KIND = "click"  # a shape that belongs to no region
_KINDS = ("point", "box", "brush", CLICK_KIND)
_LETTER = re.compile(r"\b[Rr]egion ([A-E])\b")
_ONLY = re.compile(  # what people call the only region
    r"\b(?:this|that|the(?= region| painted| marked| selected)) (?:(?:painted|marked|selected) )?"
    r"(?:region|area|object|thing)\b|\b(?:this|it)(?=\s*(?:[?.!,]|$))",
    re.IGNORECASE,
)


def drawn_regions(shapes: Any, size_wh: tuple[int, int]) -> dict[int, RLE]:
    """K of <PromptK> -> its pixels, from what the browser sends; a region is the union of its shapes.

    A shape is {"region": K, "kind": "point" | "box" | "brush", "xy": [[x, y], ...], "width": of a brush}, in pixels of
    the image. Points outside of the image are moved to its border. Clicks are left out. Raises UserError for anything
    else, and too many.
    """
    parts: dict[int, list[RLE]] = {}
    for shape in _checked(shapes):
        if shape["kind"] == CLICK_KIND:
            continue
        k, (width, height) = shape["region"], size_wh
        region = _region(shape, size_wh)
        parts.setdefault(k, []).append(draw_region(region, (height, width), f"region {NAMES[k]}"))
    return {k: unite(parts[k], (size_wh[1], size_wh[0])) for k in sorted(parts)}


def drawn_clicks(shapes: Any, size_wh: tuple[int, int]) -> tuple[Click, ...]:
    """The clicks among the shapes, in order; errors as `drawn_regions`.

    One is {"region": any, "kind": "click", "xy": [[x, y]], "positive": whether it is on the object}.
    """
    clicks = [shape for shape in _checked(shapes) if shape["kind"] == CLICK_KIND]
    return tuple(Click(*_inside(shape["xy"][0], size_wh), shape["positive"]) for shape in clicks)


def _checked(shapes: Any) -> list[dict[str, Any]]:
    """The shapes as the browser sent them. Raises UserError for anything else, and too many."""
    if not isinstance(shapes, list) or len(shapes) > MAX_SHAPES:
        raise UserError(f"the drawing has more than {MAX_SHAPES} shapes; clear it and draw fewer")
    if sum(len(shape["xy"]) for shape in shapes if _is_shape(shape)) > MAX_VERTICES:
        raise UserError(f"the drawing has more than {MAX_VERTICES:,} points; clear it and draw shorter strokes")
    if not all(map(_is_shape, shapes)):
        raise UserError("the drawing is damaged; clear it and draw again")
    return shapes


def model_words(question: str, drawn: Collection[int]) -> str:
    """The question with <PromptK> where it says "region A", or "this region" while one region is drawn."""
    question = _LETTER.sub(lambda found: PROMPTS[NAMES.index(found[1])], question)
    if len(drawn) == 1 and not names_region(question):
        (k,) = drawn
        question = _ONLY.sub(PROMPTS[k], question, count=1)
    return question


def page_words(text: str) -> str:
    """The text of a model with the names that the page gives to the regions."""
    for k, letter in enumerate(NAMES):
        text = re.sub(rf"(^|[.?!]\s+){PROMPTS[k]}", rf"\1Region {letter}", text).replace(PROMPTS[k], f"region {letter}")
    return text


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, dict)
        and shape.get("kind") in _KINDS
        and type(shape.get("region")) is int
        and 0 <= shape["region"] < len(NAMES)
        and isinstance(shape.get("xy"), list)
        and len(shape["xy"]) >= (2 if shape["kind"] == "box" else 1)
        and all(isinstance(xy, list) and len(xy) == 2 and all(_is_number(value) for value in xy) for xy in shape["xy"])
        and (shape["kind"] != "brush" or (_is_number(shape.get("width")) and shape["width"] > 0))
        and (shape["kind"] != CLICK_KIND or type(shape.get("positive")) is bool)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _inside(point: Sequence[float], size_wh: tuple[int, int]) -> tuple[float, float]:
    (x, y), (width, height) = point, size_wh
    return min(max(x, 0), width - 0.001), min(max(y, 0), height - 0.001)


def _region(shape: dict[str, Any], size_wh: tuple[int, int]) -> Region:
    xy = tuple(_inside(point, size_wh) for point in shape["xy"])
    if shape["kind"] == "point":
        return Points(xy)
    if shape["kind"] == "box":
        (left, right), (top, bottom) = (sorted(ends) for ends in zip(xy[0], xy[1], strict=True))
        return Box(left, top, max(right, left + 0.001), max(bottom, top + 0.001))
    thick = min(shape["width"], max(size_wh))
    if len(xy) == 1:  # a dab
        ((x, y),) = xy
        xy = ((x - thick / 2, y), (x + thick / 2, y))
    return Scribble(xy, thick)
