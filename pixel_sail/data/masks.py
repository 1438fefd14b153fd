"""Masks as COCO run-length codes (RLE), the only form in which they are stored; pycocotools does the work."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pixel_sail.data.limits import MAX_IMAGE_PIXELS, MAX_OUTLINE_PX, MAX_POLYGONS, MAX_RLE_CHARACTERS
from pixel_sail.data.runs import run_lengths
from pixel_sail.types import RLE, BadSample, NoPixels

SMALL_PX = 16  # no polygon of an object this large, in pixels, misses every centre of a pixel in practice
_CACHED_CHARACTERS = 4096  # longer RLEs are checked each time they are drawn: a cache of them would fill the memory
_NUMBERS = frozenset((int, float))  # types, as JSON has them
_FAR_OUTSIDE = 10  # image sides; points further away are errors and would exhaust pycocotools' memory


def encode_mask(mask: np.ndarray) -> RLE:
    """(H, W) bool -> RLE."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return _text(code)


def decode_mask(rle: RLE) -> np.ndarray:
    """RLE -> (H, W) bool."""
    return coco_mask.decode(_bytes(rle)).view(bool)  # it is of 0 and 1


def area_px(rle: RLE) -> int:
    """Pixels of the mask."""
    return int(coco_mask.area(_bytes(rle)))


def box_px(rle: RLE) -> tuple[float, float, float, float] | None:
    """(left, top, right, bottom) of the mask's pixels, edge to edge: one pixel is 1 wide. None for an empty mask."""
    left, top, width, height = map(float, coco_mask.toBbox(_bytes(rle)))
    return (left, top, left + width, top + height) if width else None


def unite(rles: Sequence[RLE], size_hw: tuple[int, int]) -> RLE:
    """Logical or of masks of one size; without masks, an all-false one of `size_hw` (height, width)."""
    if not rles:
        return encode_mask(np.zeros(size_hw, dtype=bool))
    return _text(coco_mask.merge([_bytes(rle) for rle in rles], intersect=False))


def overlap_px(first: RLE, second: RLE) -> tuple[int, int]:
    """(intersection, union) in pixels of two masks of one size."""
    both = int(coco_mask.area(coco_mask.merge([_bytes(first), _bytes(second)], intersect=True)))
    return both, area_px(first) + area_px(second) - both


def iou_matrix(first: Sequence[RLE], second: Sequence[RLE]) -> np.ndarray:
    """(n, m) float64: the IoU of each of `first` with each of `second`, all of one size."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return coco_mask.iou([_bytes(rle) for rle in first], [_bytes(rle) for rle in second], [0] * len(second))


def mask_runs(rle: RLE, where: str) -> np.ndarray:
    """Its run lengths, int64 (data/runs.py). Raises BadSample, beginning with `where`, if they do not fill its size."""
    height, width = rle["size"]
    runs = run_lengths(rle["counts"].encode("ascii"))
    if not _fill(runs, height * width):
        raise BadSample(f"{where}: the run lengths do not fill {height} x {width} pixels; the RLE is torn")
    return runs


def resize_nearest(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(..., H, W) -> (..., h, w); each new pixel has the value of the old pixel under its centre."""
    height, width = mask.shape[-2:]
    if (height, width) == tuple(size_hw):
        return mask.copy()
    rows = (2 * np.arange(size_hw[0]) + 1) * height // (2 * size_hw[0])
    columns = (2 * np.arange(size_hw[1]) + 1) * width // (2 * size_hw[1])
    if mask.ndim == 2 and mask.flags.f_contiguous:  # as masks are decoded: whole columns are copied first
        return mask.T.take(columns, axis=0).T.take(rows, axis=0)
    return mask.take(rows, axis=-2).take(columns, axis=-1)


def from_coco(segmentation: Any, height: int, width: int, where: str, left_out: list[str] | None = None) -> RLE:
    """The mask of a COCO `segmentation`: polygons (united), uncompressed RLE (crowd) or compressed RLE.

    A polygon of fewer than three points encloses nothing: it is left out, with a line in `left_out`. The mask may have
    no pixel (see `object_mask`). Raises NoPixels if no polygon is left, and BadSample if any piece is malformed; the
    messages begin with `where`.
    """
    if isinstance(segmentation, dict):
        _refuse_large(height, width, where)
        return _from_rle(segmentation, height, width, where)
    pieces = _polygons(segmentation, height, width, where, left_out)
    return unite([_text(code) for code in coco_mask.frPyObjects(pieces, height, width)], (height, width))


def has_pixels(segmentation: list[Any], height: int, width: int, where: str, left_out: list[str] | None = None) -> bool:
    """Whether the mask of these polygons has a pixel, mostly without drawing it. Raises as `from_coco`."""
    pieces = _polygons(segmentation, height, width, where, left_out)
    if any(_surely_shown(piece, height, width) for piece in pieces):
        return True
    return any(coco_mask.area(coco_mask.frPyObjects(pieces, height, width)))


def _refuse_large(height: int, width: int, where: str) -> None:
    if height * width > MAX_IMAGE_PIXELS:
        raise BadSample(f"{where}: a mask of {height} x {width} pixels; at most {MAX_IMAGE_PIXELS:,} are read")


def _polygons(segmentation: Any, height: int, width: int, where: str, left_out: list[str] | None) -> list[list[float]]:
    """The polygons of a `segmentation`, checked; `left_out` and errors as `from_coco`."""
    _refuse_large(height, width, where)
    if not isinstance(segmentation, list):
        raise BadSample(f"{where}: segmentation is {_short(segmentation)}; expected a list of polygons or an RLE")
    if not segmentation:
        raise NoPixels(f"{where}: segmentation is []; expected a list of polygons or an RLE")
    if len(segmentation) > MAX_POLYGONS:
        raise BadSample(f"{where}: a mask of {len(segmentation):,} polygons; at most {MAX_POLYGONS:,} are drawn")
    pieces, degenerate = [], []
    for number, piece in enumerate(segmentation):
        of_piece = f"{where}, polygon {number}"
        if isinstance(piece, list) and len(piece) in (0, 2, 4):  # pycocotools takes four numbers for a box
            degenerate.append(f"{of_piece}: {_short(piece)} is no polygon; it needs x, y of at least three points")
        else:
            pieces.append(_polygon(piece, height, width, of_piece))
    if not pieces:
        raise NoPixels(degenerate[0])
    if left_out is not None:
        left_out.extend(degenerate)
    return pieces


def _surely_shown(piece: list[float], height: int, width: int) -> bool:
    """True only for polygons that pycocotools draws with a pixel; it may be False for one that is shown.

    pycocotools rounds corners to fifths of a pixel, which moves none across the middle of a column. In each column it
    sorts the rows at which edges cross the middle, and fills from the first row to the second, from the third to the
    fourth, ... So a pixel is filled if the edge that ends first ends well above all others.
    """
    xs, ys = piece[::2], piece[1::2]
    center = int(max(min(xs), 0) + min(max(xs), width)) // 2
    for column in (center, center + 1, center - 1):
        offsets = [x - column - 0.5 for x in xs]
        if not 0 <= column < width or min(map(abs, offsets)) < 1e-6:  # a corner is on it
            continue
        is_right = [offset > 0 for offset in offsets]
        crossing = [k for k in range(len(xs)) if is_right[k - 1] is not is_right[k]]
        edges = sorted((max(ys[k - 1], ys[k]), min(ys[k - 1], ys[k])) for k in crossing)  # (bottom, top) of each
        if not edges:
            continue
        gap = min(min(top for _, top in edges[1:]), height) - max(edges[0][0], 0)
        if gap >= 2:  # pixels; rounding moves both ends by less than one
            return True
    return False


def object_mask(segmentation: Any, height: int, width: int, where: str, left_out: list[str] | None = None) -> RLE:
    """The mask of an object, as `from_coco`. Raises NoPixels, too, if the mask has no pixel."""
    mask = from_coco(segmentation, height, width, where, left_out)
    if area_px(mask) == 0:
        raise NoPixels(f"{where}: the mask has no pixel: the object is smaller than a pixel, or outside the image")
    return mask


def may_have_no_pixels(annotation: dict[str, Any]) -> bool:
    """Whether the mask of a COCO annotation must be drawn to know that it has pixels; cheap, for reading millions.

    Any `area` of SMALL_PX or more, as the file says, is taken to have some.
    """
    segmentation, area = annotation.get("segmentation"), annotation.get("area")
    few_points = isinstance(segmentation, list) and any(isinstance(p, list) and len(p) < 6 for p in segmentation)
    return not segmentation or few_points or not isinstance(area, int | float) or not area >= SMALL_PX


def check_rle(rle: Any, size_hw: tuple[int, int], where: str) -> RLE:
    """A complete compressed RLE of `size_hw`. Raises BadSample for any other (pycocotools would read past its end)."""
    if not isinstance(rle, dict) or not {"size", "counts"} <= set(rle) or not isinstance(rle["counts"], str | bytes):
        raise BadSample(f"{where}: {_short(rle)} is no RLE {{'size': [height, width], 'counts': text}}")
    if not isinstance(rle["size"], list | tuple) or list(rle["size"]) != list(size_hw):
        raise BadSample(
            f"{where}: the mask is of size {_short(rle['size'])}, the image is {list(size_hw)} (height, width)"
        )
    if size_hw[0] * size_hw[1] > MAX_IMAGE_PIXELS or len(rle["counts"]) > MAX_RLE_CHARACTERS:
        raise BadSample(
            f"{where}: an RLE of {size_hw[0]} x {size_hw[1]} pixels with {len(rle['counts']):,} characters; at most "
            f"{MAX_IMAGE_PIXELS:,} pixels and {MAX_RLE_CHARACTERS:,} characters are read"
        )
    counts = rle["counts"].encode("utf-8", "replace") if isinstance(rle["counts"], str) else rle["counts"]
    fills = _fills if len(counts) <= _CACHED_CHARACTERS else _fills.__wrapped__
    if not fills(counts, size_hw[0] * size_hw[1]):
        raise BadSample(f"{where}: the run lengths do not fill {size_hw[0]} x {size_hw[1]} pixels; the RLE is torn")
    return RLE(size=list(size_hw), counts=counts.decode("ascii"))


def _from_rle(code: dict[str, Any], height: int, width: int, where: str) -> RLE:
    counts = code.get("counts")
    if not isinstance(counts, list):
        return check_rle(code, (height, width), where)
    if code.get("size") not in ([height, width], (height, width)):
        raise BadSample(
            f"{where}: the mask is of size {_short(code.get('size'))}, the image is {[height, width]} (height, width)"
        )
    if len(counts) > MAX_RLE_CHARACTERS:
        raise BadSample(f"{where}: an RLE of {len(counts):,} runs; at most {MAX_RLE_CHARACTERS:,} are read")
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
        raise BadSample(f"{where}: the run lengths do not fill {height} x {width} pixels")
    return _text(coco_mask.frPyObjects(code, height, width))


def _polygon(piece: Any, height: int, width: int, where: str) -> list[float]:
    if not isinstance(piece, list) or len(piece) < 6 or len(piece) % 2:
        raise BadSample(f"{where}: {_short(piece)} is no polygon; it needs x, y of at least three points")
    if not _NUMBERS.issuperset(map(type, piece)):
        raise BadSample(f"{where}: {_short(piece)} has members that are not numbers")
    if not _is_finite(piece):
        raise BadSample(f"{where}: {_short(piece)} has members that are not finite numbers")
    far_px = _FAR_OUTSIDE * max(height, width)
    if max(piece) > far_px or min(piece) < -far_px:
        raise BadSample(f"{where}: {_short(piece)} lies far outside the {height} x {width} image")
    if len(piece) * 2 * far_px > MAX_OUTLINE_PX:  # it might
        refuse_long_outline(np.asarray(piece, dtype=np.float64).reshape(-1, 2), where)
    return piece


def _is_finite(values: list[float]) -> bool:
    """Whether all are finite, and no integer is too large for a float."""
    try:
        return math.isfinite(sum(values)) or all(map(math.isfinite, values))  # the sum of finite ones may not be
    except OverflowError:
        return False


def refuse_long_outline(points: np.ndarray, where: str) -> None:
    """Raises BadSample, beginning with `where`, for a polygon (points, 2) that zigzags more than can be drawn."""
    length = len(points) + np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > MAX_OUTLINE_PX:
        raise BadSample(
            f"{where}: a polygon of {len(points):,} points, whose outline is {length:,.0f} pixels long; at most "
            f"{MAX_OUTLINE_PX:,} are drawn"
        )


@functools.lru_cache(maxsize=2**16)  # datasets repeat objects in many entries
def _fills(counts: bytes, pixels: int) -> bool:
    """Whether a compressed RLE can be decoded and has this number of pixels."""
    return _fill(run_lengths(counts), pixels)


def _fill(runs: np.ndarray | None, pixels: int) -> bool:
    return runs is not None and int(runs.sum()) == pixels and int(runs.min(initial=0)) >= 0


def _bytes(rle: RLE) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}


def _text(code: dict[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in code["size"]], counts=code["counts"].decode("ascii"))


def _short(value: Any) -> str:
    text = repr(_beginning(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _beginning(value: Any, depth: int = 0) -> Any:
    """As much of a value as 60 characters can show: the whole of it may have millions, or be nested deep."""
    if depth == 10:
        return "..."
    if isinstance(value, dict):
        items = itertools.islice(value.items(), 10)
        return {_beginning(name, depth + 1): _beginning(member, depth + 1) for name, member in items}
    if isinstance(value, list):
        return [_beginning(member, depth + 1) for member in value[:60]]
    return value[:80] if isinstance(value, str | bytes) else value
