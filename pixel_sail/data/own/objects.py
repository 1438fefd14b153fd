"""What is read of an export: images, each with all of its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pixel_sail.data.inside import is_file
from pixel_sail.data.masks import object_mask
from pixel_sail.types import RLE, BadSample, NoPixels

T = TypeVar("T")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # of images, in lower case


@dataclass(frozen=True)
class OwnObject:
    """An object, or a crowd of them."""

    name: str  # what it is: the phrase by which it is asked for
    segmentation: Any  # as in COCO: polygons or RLE
    mask: RLE
    is_crowd: bool = False


@dataclass(frozen=True)
class OwnImage:
    """An image and every object in it; none: nothing of any category is in it."""

    path: Path
    name: str  # of the file in the new dataset, relative to its images; "/" between folders
    size_hw: tuple[int, int]  # pixels
    objects: tuple[OwnObject, ...]
    split: str | None = None  # that of the export, if it has splits


def own_object(name: str, segmentation: Any, size_hw: tuple[int, int], where: str, is_crowd: bool = False) -> OwnObject:
    """Checked and drawn. Raises BadSample, beginning with `where`, for a malformed one, and for one without pixels."""
    left_out: list[str] = []
    try:
        mask = object_mask(segmentation, *size_hw, where, left_out)
    except NoPixels as error:
        raise BadSample(f"{error}; draw it again, or delete it") from None
    if left_out:  # in one's own file a slip to mend
        raise BadSample(f"{left_out[0]}; draw it again, or delete it")
    return OwnObject(name, segmentation, mask, is_crowd)


def read_images(sources: Iterable[T], read: Callable[[T, list[str]], OwnImage], problems: list[str]) -> list[OwnImage]:
    """`read(source, its problems)` of each. An image with a problem is left out: not all of its objects are known."""
    images = []
    for source in sources:
        own: list[str] = []
        try:
            image = read(source, own)
        except BadSample as error:
            own.append(str(error))
        if own:
            problems.extend(own)
        else:
            images.append(image)
    return images


def images_in(folder: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def first_file(places: Sequence[Path], where: str) -> Path | None:
    """The first of the paths at which a file is. Raises BadSample, beginning with `where`, as `is_file` does."""
    return next((path for path in places if is_file(path, where)), None)
