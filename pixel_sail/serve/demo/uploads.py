"""What the page accepts of an image, looked at before it is decoded."""

from __future__ import annotations

from pathlib import Path

from pixel_sail.data.image import opened_image
from pixel_sail.errors import UserError
from pixel_sail.files import read_bytes

MAX_UPLOAD_BYTES = 8 * 2**20
MAX_PIXELS = 20_000_000


def check_upload(source: Path | bytes) -> bytes:
    """The bytes of an image file. Raises UserError for what is no image, is damaged, or is too large."""
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_UPLOAD_BYTES)
    if len(data) > MAX_UPLOAD_BYTES:
        raise UserError(f"the image has {len(data):,} bytes; at most {MAX_UPLOAD_BYTES:,} are accepted")
    with opened_image(data) as image:  # has read the header only
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are accepted")
        image.load()
    return data
