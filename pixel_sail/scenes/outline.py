"""Masks as polygons, for the formats that have no other masks."""

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pixel_sail.scenes.types import ObjectPolygons, ReasoningQuestion, SceneObject

Polygon = list[tuple[int, int]]  # (x, y)
Step = tuple[tuple[int, int], tuple[int, int]]  # a corner of the pixel grid, and the pixel inside beside the edge there

TOLERANCE = 0.03  # of the pixels of a mask


def object_polygons(
    owner: np.ndarray, objects: list[SceneObject], reasoning: ReasoningQuestion | None
) -> list[ObjectPolygons]:
    """COCO polygons of each object, and labelme polygons of those that the reasoning question is about.

    `owner` (H, W): the object on each pixel, -1 for none.
    """
    reasoned = {*reasoning.targets, *reasoning.doubtful} if reasoning else set()
    return [_object_polygons(owner, thing.bbox, i, i in reasoned) for i, thing in enumerate(objects)]


def _object_polygons(owner: np.ndarray, bbox: tuple[int, int, int, int], i: int, is_reasoned: bool) -> ObjectPolygons:
    left, top, width, height = bbox
    mask = owner[top : top + height, left : left + width] == i
    coco = [[value + (left, top)[k % 2] for k, value in enumerate(polygon)] for polygon in coco_polygons(mask) or []]
    labelme = {
        label: [[[x + left, y + top] for x, y in polygon] for polygon in polygons]
        for label, polygons in ((labelme_polygons(mask) if is_reasoned else None) or {}).items()
    }
    return ObjectPolygons(coco or None, labelme or None)


def coco_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """(H, W) bool -> COCO polygons [[x, y, x, y, ...], ...] that cover exactly these pixels.

    None where that is impossible.
    """
    polygons = [
        [float(value) for corner in _corners([corner for corner, _ in loop]) for value in corner]
        for loop in _loops(mask)
    ]
    if not polygons:
        return None
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
    return polygons if np.array_equal(drawn.astype(bool), mask) else None


def labelme_polygons(mask: np.ndarray) -> dict[str, list[Polygon]] | None:
    """(H, W) bool -> polygons through the outermost pixels {"target": [...], "ignore": those around holes}.

    None where they would miss the mask by more than `TOLERANCE`: this format has neither holes nor single pixels.
    """
    outer = _around(mask)
    filled = _filled(outer, mask.shape)
    holes = _around(filled & ~mask)
    wrong = (filled ^ mask) & ~_filled(holes, mask.shape)
    return {"target": outer, "ignore": holes} if outer and wrong.sum() <= TOLERANCE * mask.sum() else None


def _around(mask: np.ndarray) -> list[Polygon]:
    """The outer borders of all pieces that are wider than a line."""
    loops = [loop for loop in _loops(mask) if _area([corner for corner, _ in loop]) > 0]
    polygons = [_corners([pixel for _, pixel in loop]) for loop in loops]
    return [polygon for polygon in polygons if len(polygon) >= 3]


def _filled(polygons: list[Polygon], size_hw: tuple[int, int]) -> np.ndarray:
    canvas = Image.new("1", size_hw[::-1])
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1, outline=1)
    return np.asarray(canvas)


def _area(corners: Polygon) -> float:
    """Signed: negative where the walk goes around a hole."""
    x, y = np.array(corners).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _loops(mask: np.ndarray) -> list[list[Step]]:
    """The borders between inside and outside, each walked with the inside on the right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # for each side of a pixel: whether it is a border, and where the walk along it starts and ends
    sides = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (inside & ~padded[1:-1, 2:], (1, 0), (1, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1), (0, 1)),
        (inside & ~padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    edges: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    for border, start, end in sides:
        for y, x in np.argwhere(border).tolist():
            edges.setdefault((x + start[0], y + start[1]), []).append(((x + end[0], y + end[1]), (x, y)))
    loops = []
    while edges:
        at = first = next(iter(edges))
        loop: list[Step] = []
        while at in edges:
            end, pixel = edges[at].pop()
            if not edges[at]:
                del edges[at]
            loop.append((at, pixel))
            at = end
            if at == first:
                break
        loops.append(loop)
    return loops


def _corners(points: Polygon) -> Polygon:
    """The corners of a closed walk: no repeated points, none on a straight line."""
    walk = [point for i, point in enumerate(points) if point != points[i - 1]]
    kept = []
    for i, (x, y) in enumerate(walk):
        (ax, ay), (bx, by) = walk[i - 1], walk[(i + 1) % len(walk)]
        if (x - ax) * (by - y) != (y - ay) * (bx - x):
            kept.append((x, y))
    return kept
