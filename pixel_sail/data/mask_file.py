"""Masks as image files: an annotator's PNG, one object a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pixel_sail.data.image import opened_image
from pixel_sail.types import BadSample

_LOSSY = ("JPEG", "MPO")


def read_mask_file(path: Path | bytes, where: str, orient: bool = False) -> np.ndarray:
    """The mask (H, W) bool of an image file, or of its bytes: the pixels that are not black and not transparent.

    Any depth: a 16-bit or palette value of 1 counts as much as 255. If every visible pixel is black, the visible ones
    are the mask: some tools store it in the transparency alone. `orient` applies the EXIF rotation. Raises BadSample,
    beginning with `where`, for a file that is missing or cannot be decoded, and for a JPEG.
    """
    try:
        with opened_image(path, "mask file") as image:
            if image.format in _LOSSY:
                name = "" if isinstance(path, bytes) else f" {path}"
                raise BadSample(
                    f"the mask file{name} is a {image.format}, which turns black into nearly black around the mask; "
                    "save masks as PNG"
                )
            image.load()
            return _marked(ImageOps.exif_transpose(image) if orient else image)
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from None


def _marked(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        values = np.asarray(image.convert("RGBA"))
        coloured, visible = values[..., :3].any(axis=2), values[..., 3] > 0
        return coloured & visible if (coloured & visible).any() else visible & ~visible.all()
    values = np.asarray(image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else image)
    return values.astype(bool) if values.ndim == 2 else values.any(axis=2)
