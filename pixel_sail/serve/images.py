"""Images as users have them: files, bytes, arrays, PIL images of any mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_sail.data.image import load_image, to_rgb
from pixel_sail.errors import UserError

ImageInput = Image.Image | np.ndarray | Path | str | bytes
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://|data:")


def as_image(image: ImageInput) -> Image.Image:
    """The image as 8-bit RGB.

    A path, or the bytes of an image file, is a photo: it is turned as its EXIF says. An array is (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4) uint8, the last with opacity over white. Raises UserError for anything else, an address
    on the network included, and BadSample for a file that cannot be read.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UserError("the image has no pixel")
        try:
            return image if image.mode == "RGB" and "transparency" not in image.info else to_rgb(image)
        except ValueError as error:
            raise UserError(f"the image has mode {image.mode}: {error}") from None
    if isinstance(image, np.ndarray):
        return to_rgb(_from_array(image))
    if isinstance(image, bytes):
        return load_image(image, orient=True)
    if isinstance(image, str) and _URL.match(image):
        raise UserError(f"{image[:80]} is an address; nothing is fetched: give the file, its bytes or a PIL image")
    if isinstance(image, str | Path):
        return load_image(Path(image), orient=True)
    raise UserError(f"an image is a path, bytes, a PIL image or an array, not {type(image).__name__}")


def as_images(image: ImageInput | Sequence[ImageInput] | None) -> list[Image.Image]:
    """The images of a list or tuple, the only image, or none. Raises as `as_image`, and UserError for an empty list."""
    if image is None:
        return []
    if not isinstance(image, list | tuple):
        return [as_image(image)]
    if not image:
        raise UserError("the list of images is empty; give None for a question without an image")
    return [as_image(one) for one in image]


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        hint = "; for values in 0..1 give (255 * array).round().astype(numpy.uint8)" if array.dtype.kind == "f" else ""
        raise UserError(f"the array has values of {array.dtype}; an image has uint8{hint}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise UserError(f"the array has the shape {array.shape}; an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(np.ascontiguousarray(array))
