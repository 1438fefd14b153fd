"""The named colours and textures, and the combinations of kind and colour that only testB shows."""

import colorsys

import numpy as np

from pixel_sail.scenes.kinds import KINDS

# name: ranges of hue in degrees, saturation and value; far enough apart that no drawn colour fits two names
COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 5), (0.82, 0.95), (0.72, 0.88)),
    "orange": ((25, 32), (0.88, 1.0), (0.93, 1.0)),
    "yellow": ((50, 56), (0.75, 0.9), (0.92, 1.0)),
    "green": ((110, 145), (0.6, 0.8), (0.5, 0.7)),
    "blue": ((212, 226), (0.7, 0.88), (0.7, 0.9)),
    "purple": ((272, 284), (0.6, 0.75), (0.55, 0.7)),
    "pink": ((328, 340), (0.38, 0.5), (0.95, 1.0)),
    "brown": ((20, 27), (0.62, 0.75), (0.36, 0.46)),
    "white": ((30, 60), (0.0, 0.05), (0.94, 1.0)),
    "black": ((200, 240), (0.0, 0.15), (0.1, 0.16)),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")

_NAMES, _KINDS = list(COLOURS), list(KINDS)
# 24 of the 200 pairs (12 %): one colour of every kind, a second colour of every fifth kind; each colour at least twice.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {(kind, _NAMES[(3 * i) % 10]) for i, kind in enumerate(_KINDS)}
    | {(kind, _NAMES[(3 * i + 4) % 10]) for i, kind in enumerate(_KINDS) if i % 5 == 0}
)


def draw_colour(name: str, rng: np.random.Generator) -> np.ndarray:
    """A variation of a named colour: (3,) float64 RGB in [0, 255]."""
    hue, saturation, value = (rng.uniform(*span) for span in COLOURS[name])
    return 255 * np.array(colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value))


def second_colour(name: str, rgb: np.ndarray) -> np.ndarray:
    """The other colour of a textured object: lighter or darker, so that the name of the first still fits. (3,) RGB."""
    if name == "black":
        return np.full(3, 150.0)
    if name in ("white", "yellow"):
        return rgb * 0.55
    return rgb * 0.35 + 255 * 0.65
