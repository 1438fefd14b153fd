"""A folder of labelme (github.com/wkentaro/labelme): a JSON file for each image, with the shapes that were drawn."""

from __future__ import annotations

import base64
import binascii
import math
import reprlib
import sys
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_json
from pixel_sail.data.image import upright_size
from pixel_sail.data.inside import inside
from pixel_sail.data.mask_file import read_mask_file
from pixel_sail.data.masks import encode_mask, unite
from pixel_sail.data.own.objects import OwnImage, OwnObject, first_file, own_object, read_images
from pixel_sail.data.sources.entries import member, text_member
from pixel_sail.types import BadSample

CIRCLE_POINTS = 72  # of the polygon in place of a circle
DRAW_AREAS = "draw it as a polygon, or delete it"


def read_labelme(folder: Path, images: Path | None, problems: list[str]) -> list[OwnImage]:
    """The images of all JSON files below `folder`. `images`: where the images are, if they are not beside the files.

    `problems` gets a line for each fault, with file and shape. Raises DatasetError without any JSON file.
    """
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DatasetError(f"no JSON file below {folder}; give the folder in which labelme saved its files")
    return read_images(files, partial(_image, folder, images), problems)


def _image(folder: Path, images: Path | None, file: Path, problems: list[str]) -> OwnImage:
    try:
        values = read_json(file)
    except DatasetError as error:
        raise BadSample(f"{error}; save it again in labelme") from None
    where = str(file)
    if not isinstance(values, dict) or "shapes" not in values:
        raise BadSample(f"{where}: it has no 'shapes', so labelme did not write it; move it out of the folder")
    path, name = _image_file(folder, images, file, member(values, "imagePath", str, where))
    size = upright_size(path, where)
    said = values.get("imageHeight"), values.get("imageWidth")
    if None not in said and said != size:
        raise BadSample(
            f"{where}: it says that the image has {said[0]} x {said[1]} pixels (height x width), and {path} has "
            f"{size[0]} x {size[1]}; put the image back that was annotated"
        )
    pieces: dict[Any, list[OwnObject]] = {}  # of each object: shapes of one label and group belong together
    for number, shape in enumerate(member(values, "shapes", list, where)):
        try:
            drawn = _object(shape, size, f"{where}: shape {number}")
        except BadSample as error:
            problems.append(str(error))
            continue
        group = shape.get("group_id")
        key = number if group is None else (drawn.name, repr(group))
        pieces.setdefault(key, []).append(drawn)
    return OwnImage(path, name, size, tuple(_joined(parts, size) for parts in pieces.values()))


def _image_file(folder: Path, images: Path | None, file: Path, written: str) -> tuple[Path, str]:
    """The image and its name in the new dataset. Of a path that leads elsewhere, the name of the file counts."""
    inside(PurePosixPath(written.replace("\\", "/")).name, str(file))
    relative = PurePosixPath(written.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in written:
        relative = PurePosixPath(relative.name)
    places = [file.parent / relative, file.parent / relative.name]
    places += [] if images is None else [images / relative, images / relative.name]
    path = first_file(places, str(file))
    if path is None:
        looked = " or ".join(str(place) for place in dict.fromkeys(places))
        raise BadSample(f"{file}: no image {looked}; put it there, or say with --images in which folder it is")
    above = next(above for above in (folder, images) if above is not None and path.is_relative_to(above))
    return path, path.relative_to(above).as_posix()


def _object(shape: Any, size_hw: tuple[int, int], where: str) -> OwnObject:
    name = text_member(shape, "label", where)
    where = f"{where} ({name!r:.40})"
    kind, points = shape.get("shape_type") or "polygon", _points(shape, where)
    if kind == "polygon":
        return own_object(name, [[value for point in points for value in point]], size_hw, where)
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = zip(*points, strict=True)
        if len(points) == 2:
            points = [[xs[0], ys[0]], [xs[1], ys[0]], [xs[1], ys[1]], [xs[0], ys[1]]]
        return own_object(name, [[value for point in points for value in point]], size_hw, where)
    if kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        angles = [2 * math.pi * k / CIRCLE_POINTS for k in range(CIRCLE_POINTS)]
        outline = [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]
        return own_object(name, [outline], size_hw, where)
    if kind == "mask" and len(points) == 2:
        return own_object(name, dict(encode_mask(_pasted(shape, points, size_hw, where))), size_hw, where)
    raise BadSample(f"{where}: a {kind!r:.40} of {len(points)} points is no area; {DRAW_AREAS}")


def _points(shape: dict[str, Any], where: str) -> list[list[float]]:
    points = member(shape, "points", list, where)
    for point in points:
        numbers = isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)
        if not numbers or not all(abs(value) <= sys.float_info.max for value in point):
            raise BadSample(f"{where}: {reprlib.repr(point)} is no point [x, y]; {DRAW_AREAS}")
    return points


def _pasted(shape: dict[str, Any], corners: list[list[float]], size_hw: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool: the PNG of a shape of type mask, at the first of its two corners."""
    try:
        data = base64.b64decode(member(shape, "mask", str, where), validate=True)
    except (binascii.Error, ValueError):
        raise BadSample(f"{where}: its 'mask' is no PNG in base64; {DRAW_AREAS}") from None
    cut, mask = read_mask_file(data, where), np.zeros(size_hw, dtype=bool)
    left, top = (round(value) for value in corners[0])
    window = mask[max(top, 0) : top + cut.shape[0], max(left, 0) : left + cut.shape[1]]
    if top < 0 or left < 0 or window.shape != cut.shape:
        raise BadSample(
            f"{where}: its mask of {cut.shape[0]} x {cut.shape[1]} pixels at ({left}, {top}) reaches beyond the image "
            f"of {size_hw[0]} x {size_hw[1]} (height x width); {DRAW_AREAS}"
        )
    window[:] = cut
    return mask


def _joined(parts: list[OwnObject], size_hw: tuple[int, int]) -> OwnObject:
    """One object of several shapes."""
    if len(parts) == 1:
        return parts[0]
    mask = unite([part.mask for part in parts], size_hw)
    if all(isinstance(part.segmentation, list) for part in parts):
        return OwnObject(parts[0].name, [polygon for part in parts for polygon in part.segmentation], mask)
    return OwnObject(parts[0].name, dict(mask), mask)
