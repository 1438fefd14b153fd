"""One object as pixels, before it has a colour or a place."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pixel_sail.scenes.kinds import unit_shape

_FINE = 3  # sub-pixels a side; odd, so that the middle one is the centre of the pixel
_UNIT = 110  # grey level that stands for shade 1.0 in the 8-bit drawing


@dataclass(frozen=True)
class Sprite:
    cover: np.ndarray  # (H, W) bool: the shape covers the centre of the pixel
    alpha: np.ndarray  # (H, W) float32 in [0, 1]: the share of the pixel that it covers
    shade: np.ndarray  # (H, W) float32: the brightness of the parts, 1.0 is the plain colour


def draw_sprite(kind: str, size_px: float, rng: np.random.Generator) -> Sprite:
    """Draw `kind` with its longer side `size_px` pixels; one empty pixel stays on each side."""
    parts = unit_shape(kind, rng)
    points = np.concatenate([part.points for part in parts if part.shade > 0]) * size_px
    half = np.ceil(np.abs(points).max(axis=0)).astype(int) + 1
    width, height = 2 * half
    canvas = Image.new("L", (int(width) * _FINE, int(height) * _FINE))
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        corners = (part.points * size_px + half) * _FINE
        pen.polygon([tuple(point) for point in corners.tolist()], fill=min(255, round(part.shade * _UNIT)))
    level = np.asarray(canvas)
    drawn = canvas.point([0] + [255] * 255)
    alpha = np.asarray(drawn.reduce(_FINE), np.float32) / 255
    total = np.asarray(canvas.reduce(_FINE), np.float32) / _UNIT
    shade = total / np.maximum(alpha, 1e-3)
    return Sprite(level[1::_FINE, 1::_FINE] > 0, alpha, np.where(alpha > 0, shade, 1.0).astype(np.float32))
