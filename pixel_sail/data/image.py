"""Images: any file to RGB, RGB to patches (docs/model.md has the rule of the size)."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pixel_sail.architecture import Architecture
from pixel_sail.data.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from pixel_sail.errors import UserError
from pixel_sail.files import check_regular
from pixel_sail.types import BadSample

# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError, MemoryError),
)
# What is decoded. Others need programs (EPS starts Ghostscript), or are no images of datasets.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF"),
    *("TGA", "SGI", "PCX", "ICO", "QOI"),
)
NEO_LEAST_SIDE = 256  # pixels, the root of the smallest area
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION, _SIDES_SWAPPED = 0x0112, (5, 6, 7, 8)  # the EXIF tag; its values for a turn by 90 degrees


@contextlib.contextmanager
def opened_image(source: Path | bytes, what: str = "image") -> Iterator[Image.Image]:
    """An image file or its bytes, of which only the header has been read: the only door to images.

    What is no regular file, and what has more than MAX_IMAGE_PIXELS or MAX_IMAGE_BYTES, is refused before anything is
    decoded. Raises BadSample, naming the file and `what` it is, also for errors of the decoder within the block.
    """
    name = f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)
    too_large = (
        f"the {what} {name} has more than {MAX_IMAGE_PIXELS:,} pixels; save a smaller copy of it in its place (where "
        "masks belong to it, make them smaller with it)"
    )
    if not isinstance(source, bytes):
        check_regular(source, MAX_IMAGE_BYTES, BadSample, f"{what.removesuffix(' file')} file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise BadSample(too_large)
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise BadSample(too_large) from None
    except _DECODER_ERRORS as error:
        raise BadSample(f"cannot decode the {what} {name}: {error}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def load_image(source: Path | bytes, orient: bool = False) -> Image.Image:
    """The image as 8-bit RGB. Grey, palette, CMYK and 16-bit images are converted; transparent ones get a white ground.

    `orient` applies the EXIF rotation: right for a user's photo and for polygons drawn on the shown image (labelme),
    wrong for the other datasets, whose masks follow the stored pixels. Raises BadSample, naming the file, if it is
    missing, truncated, too large or cannot be decoded.
    """
    with opened_image(source) as image:
        image.load()
        image = ImageOps.exif_transpose(image) if orient else image
        # Most files: what is decoded is returned, not a copy of it.
        return image if image.mode == "RGB" and "transparency" not in image.info else to_rgb(image)


def image_size(source: Path | bytes, where: str, orient: bool = False) -> tuple[int, int]:
    """(height, width) in pixels, from an image file or its first bytes; `orient`: after the EXIF rotation.

    Raises BadSample, beginning with `where`.
    """
    try:
        with opened_image(source) as image:
            turned = orient and orientation(image) in _SIDES_SWAPPED
            return (image.width, image.height) if turned else (image.height, image.width)
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None


def upright_size(path: Path, where: str) -> tuple[int, int]:
    """(height, width) in pixels of an image file that is stored as it is shown.

    Raises BadSample, beginning with `where`, for an image that cannot be read or is stored turned (EXIF): coordinates
    may follow the stored pixels or what a viewer shows.
    """
    try:
        with opened_image(path) as image:
            turn = orientation(image)
            size = image.height, image.width
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None
    if turn not in (None, 0, 1):
        raise BadSample(
            f"{where}: the image {path} is stored turned (EXIF orientation {turn}), so that coordinates could follow "
            "the stored or the shown pixels; save it upright, without this tag"
        )
    return size


def upright(path: Path) -> Path | bytes:
    """The image as it is shown: the file itself, or, if EXIF asks for a rotation, a PNG of the turned pixels.

    Raises BadSample as `load_image` does.
    """
    try:
        with opened_image(path) as image:
            if orientation(image) in (None, 1):
                return path
    except BadSample:
        return path  # whoever decodes it reports the error
    turned = io.BytesIO()
    load_image(path, orient=True).save(turned, "PNG", compress_level=1)
    return turned.getvalue()


def seen_size(size_wh: tuple[int, int], architecture: Architecture) -> tuple[int, int]:
    """Image (width, height) -> size in pixels that a model of `architecture` sees."""
    rules = {"longer_side": resized_size, "area": resized_by_area, "nearest": resized_to_nearest}
    return rules[architecture.resize_by](size_wh, architecture.patch_size, architecture.max_side_px)


def resized_to_nearest(size_wh: tuple[int, int], patch: int, side: int) -> tuple[int, int]:
    """The nearest multiples of `patch`, with an area of at most `side` squared and 256 squared or more, if it can be.

    NEO's rule, which is Qwen2-VL's: sides of a larger image are multiplied to that area and rounded down, those of a
    smaller one rounded up. An image so narrow that its shorter side would be less than `patch` is cut as by area.
    """
    width, height = (max(patch, round(length / patch) * patch) for length in size_wh)
    scale = math.sqrt(size_wh[0] * size_wh[1])
    if width * height > side**2:
        longest = side**2 // patch
        return tuple(max(patch, int(min(length / scale * side, longest) / patch) * patch) for length in size_wh)
    least = min(side, NEO_LEAST_SIDE)
    if width * height < least**2:
        return tuple(math.ceil(min(length / scale * least, least**2 / patch) / patch) * patch for length in size_wh)
    return width, height


def resized_by_area(size_wh: tuple[int, int], patch: int, side: int) -> tuple[int, int]:
    """(width, height) with the area `side` squared, each then rounded up to a multiple of `patch`: EVEv2's rule.

    An image so narrow that its shorter side would be less than `patch` is cut no longer than the area allows.
    """
    scale = math.sqrt(size_wh[0] * size_wh[1]) / side
    longest = side * side // patch
    width, height = (math.ceil(min(length / scale, longest) / patch) * patch for length in size_wh)
    return width, height


def resized_size(size_wh: tuple[int, int], patch: int, max_side: int) -> tuple[int, int]:
    """Image (width, height) -> multiples of `patch`, at most `max_side`: the rule of Pixel-SAIL."""
    if max_side % patch:
        raise ValueError(f"max_side {max_side} is not a multiple of the patch side {patch}")
    long, short = max(size_wh), min(size_wh)
    new_long = min(math.ceil(long / patch) * patch, max_side)
    new_short = max(patch, math.ceil(int(new_long * short / long) / patch) * patch)
    return (new_long, new_short) if size_wh[0] >= size_wh[1] else (new_short, new_long)


def to_patches(image: Image.Image, architecture: Architecture) -> tuple[torch.Tensor, tuple[int, int]]:
    """RGB image -> patches (N, 3 P P) uint8, row-major, each (channel, row, column), and the grid (h, w).

    The model normalizes them (model/pixels.py): as bytes they are a quarter on their way to it.
    """
    patch, (width, height) = architecture.patch_size, seen_size(image.size, architecture)
    resized = image.resize((width, height), _FILTERS[architecture.resize_filter])
    h, w = height // patch, width // patch
    blocks = np.asarray(resized).reshape(h, patch, w, patch, 3).transpose(0, 2, 4, 1, 3)  # (h, w, 3, P, P)
    return torch.from_numpy(np.ascontiguousarray(blocks).reshape(h * w, 3 * patch * patch)), (h, w)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, converted as in `load_image`. Raises ValueError for floating-point pixels."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16-bit grey; Pillow would clip it at 255
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image as 8 or 16 bit")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None without one."""
    return image.getexif().get(_ORIENTATION)
