"""From a scene to an image: background, shadows, shaded and textured objects, sensor noise."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pixel_sail.scenes.colours import draw_colour, second_colour
from pixel_sail.scenes.layout import PlacedObject, Scene, windows
from pixel_sail.scenes.night import night_background, night_camera
from pixel_sail.scenes.types import Rng

STYLES = ("day", "night")


def render(scene: Scene, rng: Rng, style: str = "day") -> np.ndarray:
    """The image of a scene in one of STYLES: (height, width, 3) uint8 RGB."""
    background, camera = (night_background, night_camera) if style == "night" else (_background, _camera)
    canvas = background(scene.width, scene.height, rng)
    light = np.array([rng.uniform(-1, 1), -rng.uniform(0.6, 1.0)])  # (x, y) towards the light, which is above
    light /= np.hypot(*light)
    for thing in scene.things:
        _shadow(canvas, scene, thing, light)
        _paint(canvas, scene, thing, light, rng)
    return camera(canvas, rng)


def _noise(width: int, height: int, cell_px: float, rng: Rng) -> np.ndarray:
    """Smooth noise with structures of about `cell_px` pixels: (height, width) float32, about [-1, 1]."""
    shape = (max(2, round(height / cell_px)), max(2, round(width / cell_px)))
    grid = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _muted(rng: Rng) -> np.ndarray:
    """A colour of low saturation, so that no background is mistaken for a named object: (3,) RGB."""
    grey = rng.uniform(90, 215)
    return np.clip(grey + rng.uniform(-1, 1, 3) * 26, 0, 255)


def _background(width: int, height: int, rng: Rng) -> np.ndarray:
    """Wall and floor, or one slanted gradient, with texture and clutter: (height, width, 3) float32 RGB."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height, x / width
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.5)[..., None]
    canvas = (_muted(rng) * (1 - ramp) + _muted(rng) * ramp).astype(np.float32)
    if rng.random() < 0.35:  # wallpaper: faint stripes or dots, so that a pattern alone is not an object
        turn, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.1)
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        waves = np.sin(2 * np.pi * u / period) * (np.sin(2 * np.pi * v / period) if rng.random() < 0.5 else 1)
        canvas += rng.uniform(5, 13) * np.clip(3 * waves, -1, 1)[..., None]
    canvas = _clutter(canvas, rng)
    if rng.random() < 0.55:
        horizon = rng.uniform(0.35, 0.7) + rng.uniform(-0.12, 0.12) * (x - 0.5)
        floor = np.clip((y - horizon) * height, 0, 1)[..., None]
        depth = 0.8 + 0.35 * (y - horizon)
        ground = (_muted(rng) * depth[..., None]).astype(np.float32)
        if rng.random() < 0.6:  # boards that run towards the viewer
            planks = np.sin((x - 0.5) / np.maximum(y - horizon + 0.35, 0.1) * rng.uniform(10, 24))
            ground *= (1 - 0.12 * (planks > 0.9))[..., None]
        canvas = canvas * (1 - floor) + ground * floor
        canvas *= 1 - 0.3 * np.exp(-np.abs(y - horizon) * 25)[..., None]
    short = min(width, height)
    texture = 9 * _noise(width, height, short / 5, rng) + rng.uniform(2, 9) * _noise(width, height, 3, rng)
    return canvas + texture[..., None]


def _clutter(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Pale blobs, panels and lines behind the objects: clutter without a name."""
    height, width = canvas.shape[:2]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.06, 0.35) * min(width, height)
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 9)))
        far = radius * rng.uniform(0.5, 1.3, len(turns))
        points = np.stack([x + far * np.cos(turns), y + far * np.sin(turns)], axis=1)
        pen.polygon([tuple(p) for p in points.tolist()], fill=tuple(int(v) for v in _muted(rng)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 5.0)))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        ends = rng.uniform(-0.1, 1.1, 4) * np.array([width, height, width, height])
        pen.line(ends.tolist(), fill=tuple(int(v) for v in _muted(rng)), width=int(rng.integers(1, 3)))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    return canvas * 0.45 + soft * 0.55


def _blur(plane: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur of a (H, W) float32 plane in [0, 1]."""
    image = Image.fromarray((plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(image, np.float32) / 255


def _shadow(canvas: np.ndarray, scene: Scene, thing: PlacedObject, light: np.ndarray) -> None:
    """Draw a soft shadow on what lies behind, away from the light by a small share of the object's size."""
    reach = 1 + 0.045 * thing.size_px
    pad = int(3 * reach) + 2
    soft = _blur(np.pad(thing.sprite.alpha, pad), reach)
    top, left = thing.top - pad - round(light[1] * reach), thing.left - pad - round(light[0] * reach)
    y0, x0 = max(0, top), max(0, left)
    part = soft[y0 - top : scene.height - top, x0 - left : scene.width - left]
    canvas[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] *= 1 - 0.42 * part[..., None]


def _pattern(texture: str, shape: tuple[int, int], size_px: float, rng: Rng) -> np.ndarray:
    """The share of the second colour: (H, W) float32 in [0, 1], edges about one pixel soft."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    y, x = y - shape[0] / 2, x - shape[1] / 2
    turn = rng.uniform(0, np.pi)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    period = max(5.0, size_px * rng.uniform(0.15, 0.2))
    if texture == "striped":
        edge = np.cos(2 * np.pi * u / period) * period / (2 * np.pi)
    elif texture == "checkered":
        edge = np.sin(np.pi * u / period) * np.sin(np.pi * v / period) * period / np.pi
    elif texture == "dotted":
        du, dv = (u % period) - period / 2, (v % period) - period / 2
        edge = 0.3 * period - np.hypot(du, dv)
    else:
        return np.zeros(shape, np.float32)
    return np.clip(0.5 + edge, 0, 1).astype(np.float32)


def _paint(canvas: np.ndarray, scene: Scene, thing: PlacedObject, light: np.ndarray, rng: Rng) -> None:
    """Draw one object over the canvas: colour x parts x texture x light, darker towards its edge."""
    sprite = thing.sprite
    first = draw_colour(thing.colour, rng)
    mix = _pattern(thing.texture, sprite.alpha.shape, thing.size_px, rng)[..., None]
    colour = first * (1 - mix) + second_colour(thing.colour, first) * mix
    soft = _blur(sprite.alpha, max(1.0, 0.05 * thing.size_px))
    slope_y, slope_x = np.gradient(soft)
    bevel = -(slope_x * light[0] + slope_y * light[1]) * max(1.0, 0.05 * thing.size_px)
    height, width = soft.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ramp = 0.16 * (x * light[0] + y * light[1])
    rim = 0.55 + 0.45 * np.clip((soft - 0.35) / 0.4, 0, 1)
    grain = 0.03 * _noise(width, height, 2.5, rng)
    bright = sprite.shade * rim * (1 + ramp + 0.9 * bevel + grain)
    # multiplied brightness alone would show no parts and no light on black things
    lift = 26 * np.clip(sprite.shade - 1, 0, 1) + 60 * np.clip(bevel, 0, 1)
    colour = np.clip(colour * bright[..., None] + lift[..., None], 0, 255)
    in_image, in_sprite = windows(scene, thing)
    alpha = sprite.alpha[in_sprite][..., None]
    canvas[in_image] = canvas[in_image] * (1 - alpha) + colour[in_sprite] * alpha


def _camera(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Exposure, vignette, a little blur and sensor noise: (height, width, 3) uint8."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    canvas = canvas * (rng.uniform(0.92, 1.06) * (1 - rng.uniform(0, 0.14) * (x * x + y * y)))[..., None]
    canvas += rng.uniform(-5, 5, 3)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.2, 0.55))
    )
    grain = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(1.5, 5.5)
    return np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8)
