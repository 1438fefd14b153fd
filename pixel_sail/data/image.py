"""Images: any file to RGB, RGB to normalized patches (docs/model.md has the rule of the size)."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pixel_sail.types import BadSample

MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)  # ImageNet, of RGB in 0..1
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)

# Raised by Pillow's decoders on damaged files.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_ORIENTATION, _SIDES_SWAPPED = 0x0112, (5, 6, 7, 8)  # the EXIF tag; its values for a turn by 90 degrees
_TOO_LARGE = (
    f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which Pillow refuses as a decompression bomb; "
    "save a smaller copy of it in its place (where masks belong to it, make them smaller with it)"
)


def load_image(source: Path | bytes, orient: bool = False) -> Image.Image:
    """The image as 8-bit RGB. Grey, palette, CMYK and 16-bit images are converted; transparent ones get a white ground.

    `orient` applies the EXIF rotation: right for a user's photo and for polygons drawn on the shown image (labelme),
    wrong for the other datasets, whose masks follow the stored pixels. Raises BadSample, naming the file, if it is
    missing, truncated, too large or cannot be decoded.
    """
    name = f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if orient else image)
    except FileNotFoundError:
        raise BadSample(f"no image file {name}") from None
    except Image.DecompressionBombError:
        raise BadSample(f"the image {name} {_TOO_LARGE}") from None
    except DECODER_ERRORS as error:
        raise BadSample(f"cannot decode the image {name}: {error}") from None


def image_size(path: Path, where: str, orient: bool = False) -> tuple[int, int]:
    """(height, width) in pixels, from the header of an image file; `orient`: after the EXIF rotation.

    Raises BadSample, beginning with `where`.
    """
    try:
        with Image.open(path) as image:
            turned = orient and _orientation(image) in _SIDES_SWAPPED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Image.DecompressionBombError:
        raise BadSample(f"{where}: {path} {_TOO_LARGE}") from None
    except DECODER_ERRORS as error:
        raise BadSample(f"{where}: cannot decode the image {path}: {error}") from None


def upright(path: Path) -> Path | bytes:
    """The image as it is shown: the file itself, or, if EXIF asks for a rotation, a PNG of the turned pixels.

    Raises BadSample as `load_image` does.
    """
    try:
        with Image.open(path) as image:
            if _orientation(image) in (None, 1):
                return path
    except DECODER_ERRORS:
        return path  # whoever decodes it reports the error
    turned = io.BytesIO()
    load_image(path, orient=True).save(turned, "PNG", compress_level=1)
    return turned.getvalue()


def resized_size(size_wh: tuple[int, int], patch: int, max_side: int) -> tuple[int, int]:
    """Image (width, height) -> size in pixels that the model sees: multiples of `patch`, at most `max_side`."""
    if max_side % patch:
        raise ValueError(f"max_side {max_side} is not a multiple of the patch side {patch}")
    long, short = max(size_wh), min(size_wh)
    new_long = min(math.ceil(long / patch) * patch, max_side)
    new_short = max(patch, math.ceil(int(new_long * short / long) / patch) * patch)
    return (new_long, new_short) if size_wh[0] >= size_wh[1] else (new_short, new_long)


def to_patches(image: Image.Image, patch: int, max_side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """RGB image -> patches (N, 3 P P) float32, row-major, each (channel, row, column), and the grid (h, w)."""
    width, height = resized_size(image.size, patch, max_side)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = (np.asarray(resized, dtype=np.float32) / 255 - MEAN) / STD  # (H, W, 3)
    h, w = height // patch, width // patch
    blocks = pixels.reshape(h, patch, w, patch, 3).transpose(0, 2, 4, 1, 3)  # (h, w, 3, P, P)
    return torch.from_numpy(blocks.reshape(h * w, 3 * patch * patch)), (h, w)


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


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None without one."""
    return image.getexif().get(_ORIENTATION)
