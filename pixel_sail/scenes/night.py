"""The second style of the embedded dataset: the same objects at night, lit by lamps, with a noisy camera.

Backgrounds, light, colour balance and noise differ; objects, masks, texts and formats are the same. A model trained by
day has a good start here, but must adapt.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pixel_sail.scenes.types import Rng

# RGB factors of the lights of a night: sodium lamps, neon tubes, the moon
LIGHTS = ((1.3, 0.95, 0.5), (0.7, 1.15, 0.95), (0.7, 0.85, 1.35))


def night_background(width: int, height: int, rng: Rng) -> np.ndarray:
    """A dark wall of bricks or slats, with windows and points of light out of focus: (height, width, 3) float32 RGB."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    canvas = _dark(rng) * (1 - y / height)[..., None] + _dark(rng) * (y / height)[..., None]
    row = max(6.0, height * rng.uniform(0.06, 0.12))
    shift = row * (np.floor(y / row) % 2)
    joints = (y % row < 1) | ((x + shift) % (2 * row) < 1) if rng.random() < 0.5 else x % row < 1.5
    canvas *= (1 - 0.35 * joints)[..., None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 8)):
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        side = rng.uniform(0.04, 0.13) * min(width, height)
        box = (left, top, left + side, top + side * rng.uniform(1, 1.7))
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw(box, fill=tuple(int(v) for v in _dark(rng) * rng.uniform(1.2, 2.2)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.5))), np.float32)


def night_camera(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Light of one coloured lamp, blur, coarse and fine noise: (height, width, 3) uint8."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    far = np.hypot(x / width - rng.uniform(0, 1), y / height - rng.uniform(-0.2, 0.8))
    light = rng.uniform(0.38, 0.5) + rng.uniform(0.25, 0.45) * np.exp(-2.5 * far * far)
    colour = np.array(LIGHTS[rng.integers(len(LIGHTS))], np.float32)
    strength = rng.uniform(0.4, 0.9)
    canvas = canvas * light[..., None] * (1 + strength * (colour - 1))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    canvas = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9))), np.float32)
    coarse = rng.standard_normal((height // 2 + 1, width // 2 + 1, 3), np.float32).repeat(2, 0).repeat(2, 1)
    fine = rng.standard_normal(canvas.shape, np.float32)
    noise = rng.uniform(2, 5) * coarse[:height, :width] + rng.uniform(4, 8) * fine
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)


def _dark(rng: Rng) -> np.ndarray:
    """A dark colour of low saturation: (3,) RGB."""
    return np.clip(rng.uniform(25, 80) + rng.uniform(-1, 1, 3) * 14, 0, 255).astype(np.float32)
