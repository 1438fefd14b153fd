"""The shapes: each kind of object as a list of polygons in its own frame.

A shape is a list of `Part`: polygons drawn one over the other, in order. `shade` multiplies the colour of the
object (1.0 = the colour itself); `shade = 0` cuts a hole into the parts before it. Coordinates are in an arbitrary
unit, x to the right and y down; `unit_shape` scales the whole shape so that its longer side is 1, centred on (0, 0).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pixel_sail.scenes.types import Rng


class Part(NamedTuple):
    """One polygon: points (N, 2) float64 as (x, y); shade in [0, 2], 0 cuts a hole."""

    points: np.ndarray
    shade: float


def ellipse(x: float, y: float, rx: float, ry: float, shade: float = 1.0) -> Part:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return Part(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1), shade)


def box(x0: float, y0: float, x1: float, y1: float, shade: float = 1.0) -> Part:
    return Part(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float), shade)


def polygon(points: list[tuple[float, float]], shade: float = 1.0) -> Part:
    return Part(np.array(points, float), shade)


def bar(x0: float, y0: float, x1: float, y1: float, width: float, shade: float = 1.0) -> Part:
    """A straight line with a width, as a rectangle."""
    along = np.array([x1 - x0, y1 - y0]) / max(np.hypot(x1 - x0, y1 - y0), 1e-9)
    side = np.array([-along[1], along[0]]) * width / 2
    start, end = np.array([x0, y0]) - along * width / 4, np.array([x1, y1]) + along * width / 4
    return Part(np.stack([start + side, end + side, end - side, start - side]), shade)


def _ball(rng: Rng) -> list[Part]:
    return [ellipse(0, 0, 1, 1), ellipse(-0.33, -0.36, 0.2, 0.16, 1.5)]


def _box(rng: Rng) -> list[Part]:
    height, depth = rng.uniform(0.75, 1.1), rng.uniform(0.3, 0.5)
    top = polygon([(-1, -height), (1, -height), (1 + depth, -height - depth), (-1 + depth, -height - depth)], 1.3)
    side = polygon([(1, -height), (1 + depth, -height - depth), (1 + depth, height - depth), (1, height)], 0.65)
    return [box(-1, -height, 1, height), top, side]


def _mug(rng: Rng) -> list[Part]:
    height, grip = rng.uniform(0.85, 1.1), rng.uniform(0.5, 0.62)
    handle = [ellipse(0.85, 0, grip, 0.62 * height, 0.85), ellipse(0.85, 0, grip - 0.22, 0.62 * height - 0.22, 0)]
    body = [box(-0.8, -height, 0.8, height), ellipse(0, height, 0.8, 0.2), ellipse(0, -height, 0.8, 0.22, 1.25)]
    return [*handle, *body, ellipse(0, -height + 0.03, 0.66, 0.14, 0.45)]


def _ring(rng: Rng) -> list[Part]:
    inner = rng.uniform(0.5, 0.68)
    return [ellipse(0, 0, 1, 1), ellipse(0, 0, inner, inner, 0)]


def _key(rng: Rng) -> list[Part]:
    bow, length = rng.uniform(0.45, 0.55), rng.uniform(1.5, 1.9)
    teeth = [box(length - 0.2 - 0.34 * i, 0.05, length - 0.36 * i, 0.5 - 0.1 * i, 0.9) for i in range(2)]
    return [
        box(0, -0.14, length, 0.14),
        *teeth,
        ellipse(-0.3, 0, bow, bow),
        ellipse(-0.3, 0, bow - 0.24, bow - 0.24, 0),
    ]


def _tree(rng: Rng) -> list[Part]:
    trunk = box(-0.16, 0.2, 0.16, 1.3, 0.5)
    if rng.random() < 0.5:
        tiers = [(-1.3, -0.45, 0.55), (-0.85, 0.1, 0.75), (-0.35, 0.7, 0.95)]
        crown = [polygon([(0, a), (w, b), (-w, b)], 1.15 - 0.12 * i) for i, (a, b, w) in reversed([*enumerate(tiers)])]
        return [trunk, *crown]
    crown = [ellipse(rng.uniform(-0.5, 0.5), rng.uniform(-0.75, 0.1), 0.52, 0.48, 0.9) for _ in range(5)]
    return [trunk, *crown, ellipse(0, -0.35, 0.75, 0.7), ellipse(-0.2, -0.55, 0.35, 0.3, 1.15)]


def _house(rng: Rng) -> list[Part]:
    # parts that only touch would leave a seam of uncovered pixels when turned, so they overlap (here and in the car)
    wall, roof, door = rng.uniform(0.75, 1.0), rng.uniform(0.6, 0.9), rng.uniform(-0.45, 0.1)
    chimney = box(0.45, -roof - 0.15, 0.7, 0, 0.7)
    walls = [box(-0.9, -0.08, 0.9, wall), polygon([(-1.1, 0), (0, -roof), (1.1, 0)], 0.6)]
    return [chimney, *walls, box(door, wall - 0.6, door + 0.36, wall, 0.4), box(0.35, 0.2, 0.7, 0.5, 1.5)]


def _car(rng: Rng) -> list[Part]:
    nose, roof = rng.uniform(0.2, 0.4), rng.uniform(0.45, 0.6)
    cabin = polygon([(-0.85, 0.08), (-0.85, 0), (-0.5, -roof), (0.4, -roof), (0.85, 0), (0.85, 0.08)], 0.95)
    glass = polygon([(-0.65, -0.02), (-0.42, -roof + 0.1), (-0.04, -roof + 0.1), (-0.04, -0.02)], 1.6)
    screen = polygon([(0.06, -0.02), (0.06, -roof + 0.1), (0.34, -roof + 0.1), (0.64, -0.02)], 1.6)
    body = polygon([(-1.3, 0.5), (-1.3, 0.05), (-0.9, 0), (0.9, 0), (1.25, nose * 0.5), (1.35, 0.5)])
    wheels = [part for x in (-0.75, 0.8) for part in (ellipse(x, 0.5, 0.3, 0.3, 0.3), ellipse(x, 0.5, 0.13, 0.13, 0.9))]
    return [cabin, glass, screen, body, *wheels]


def _fish(rng: Rng) -> list[Part]:
    tall = rng.uniform(0.42, 0.58)
    tail = polygon([(0.6, 0), (1.35, -tall), (1.15, 0), (1.35, tall)], 0.75)
    fin = polygon([(-0.25, -tall * 0.8), (0.35, -tall * 1.45), (0.45, -tall * 0.5)], 0.7)
    return [
        tail,
        fin,
        ellipse(0, 0, 0.95, tall),
        ellipse(-0.6, -0.12, 0.11, 0.11, 1.8),
        ellipse(-0.62, -0.12, 0.05, 0.05, 0.15),
    ]


def _star(rng: Rng) -> list[Part]:
    inner = rng.uniform(0.38, 0.5)
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return [Part(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1), 1.0)]


def _arrow(rng: Rng) -> list[Part]:
    neck, wide, half = rng.uniform(0.1, 0.4), rng.uniform(0.55, 0.75), rng.uniform(0.18, 0.28)
    return [polygon([(-1.1, -half), (neck, -half), (neck, -wide), (1.1, 0), (neck, wide), (neck, half), (-1.1, half)])]


def _umbrella(rng: Rng) -> list[Part]:
    canopy = Part(ellipse(0, 0, 1.1, rng.uniform(0.8, 1.0)).points, 1.0)
    # A cut of the lower half leaves the dome; three scallops give it the edge of an umbrella.
    scallops = [ellipse(x, 0.02, 0.37, 0.2, 0) for x in (-0.735, 0, 0.735)]
    pole = [bar(0, -0.2, 0, 0.95, 0.1, 0.55), bar(0, 0.95, 0.1, 1.1, 0.1, 0.55), bar(0.1, 1.1, 0.3, 1.0, 0.1, 0.55)]
    ribs = [bar(0, -0.85, x, -0.16, 0.04, 0.7) for x in (-0.4, 0.4)]
    return [canopy, box(-1.2, 0.0, 1.2, 1.1, 0), *scallops, *ribs, *pole, bar(0, -1.05, 0, -0.8, 0.08, 0.6)]


def _bicycle(rng: Rng) -> list[Part]:
    radius, gap = rng.uniform(0.52, 0.6), rng.uniform(0.8, 0.9)
    wheels = [
        part
        for x in (-gap, gap)
        for part in (ellipse(x, 0.3, radius, radius, 0.6), ellipse(x, 0.3, radius - 0.14, radius - 0.14, 0))
    ]
    lines = [(-gap, 0.3, -0.35, -0.35), (-0.35, -0.35, 0.5, -0.35), (-0.1, 0.3, 0.5, -0.35), (-gap, 0.3, -0.1, 0.3)]
    lines += [(-0.1, 0.3, -0.4, -0.5), (gap, 0.3, 0.45, -0.6)]
    tops = [bar(-0.62, -0.55, -0.2, -0.55, 0.16, 0.8), bar(0.3, -0.66, 0.66, -0.6, 0.13, 0.8)]
    return [*wheels, *[bar(*line, 0.13) for line in lines], *tops, ellipse(-0.1, 0.3, 0.14, 0.14, 0.7)]


def _chair(rng: Rng) -> list[Part]:
    back = rng.uniform(1.0, 1.3)
    rails = [box(-0.7, -back, 0.5, -back + 0.26), box(-0.7, -back * 0.55, 0.5, -back * 0.55 + 0.16)]
    posts = [box(-0.7, -back, -0.52, 0.2, 0.85), box(0.32, -back, 0.5, 0.2, 0.85)]
    seat = polygon([(-0.75, 0.0), (0.5, 0.0), (0.9, 0.3), (-0.5, 0.3)], 1.2)
    legs = [bar(x, 0.25, x, 1.15, 0.17, 0.65) for x in (-0.4, 0.78)] + [bar(-0.64, 0.1, -0.64, 0.9, 0.15, 0.5)]
    return [*rails, *posts, *legs, seat]


def _lamp(rng: Rng) -> list[Part]:
    top, foot = rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.65)
    shade = polygon([(-top, -1.2), (top, -1.2), (0.85, -0.3), (-0.85, -0.3)])
    return [
        bar(0, -0.4, 0, 1.0, 0.14, 0.55),
        shade,
        ellipse(0, 1.05, foot, 0.17, 0.65),
        ellipse(0, -0.3, 0.85, 0.1, 1.3),
    ]


def _flower(rng: Rng) -> list[Part]:
    count, stem = int(rng.integers(5, 8)), rng.uniform(1.3, 1.6)
    angles = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1)
    petals = [ellipse(0.5 * np.cos(a), 0.5 * np.sin(a), 0.33, 0.33, 0.9 + 0.2 * (i % 2)) for i, a in enumerate(angles)]
    # no leaf on the stem: "leaf" is the name of another kind
    return [bar(0, 0.2, 0, stem, 0.1, 0.5), *petals, ellipse(0, 0, 0.28, 0.28, 0.45)]


def _leaf(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.42, 0.6)
    t = np.linspace(0, np.pi, 16)
    upper = np.stack([-np.cos(t), -wide * np.sin(t) ** 1.4], axis=1)
    blade = Part(np.concatenate([upper, upper[::-1] * np.array([1, -1])]), 1.0)
    veins = [bar(x, 0, x + 0.3, s * wide * 0.6, 0.04, 0.65) for x in (-0.55, -0.15, 0.25) for s in (-1, 1)]
    return [blade, bar(-1.4, 0, 0.9, 0, 0.09, 0.6), *veins]


def _bottle(rng: Rng) -> list[Part]:
    neck, wide = rng.uniform(0.13, 0.18), rng.uniform(0.38, 0.48)
    body = [
        (-neck, -1.2),
        (neck, -1.2),
        (neck, -0.6),
        (wide, -0.25),
        (wide, 1.1),
        (-wide, 1.1),
        (-wide, -0.25),
        (-neck, -0.6),
    ]
    return [polygon(body), box(-neck - 0.05, -1.35, neck + 0.05, -1.1, 0.5), box(-wide, 0.1, wide, 0.7, 1.35)]


def _ladder(rng: Rng) -> list[Part]:
    half, rungs = rng.uniform(0.4, 0.5), int(rng.integers(4, 6))
    rails = [bar(-half, -1.2, -half, 1.2, 0.16), bar(half, -1.2, half, 1.2, 0.16)]
    return [bar(-half, y, half, y, 0.14, 0.8) for y in np.linspace(-0.95, 0.95, rungs)] + rails


def _kite(rng: Rng) -> list[Part]:
    wide, sway = rng.uniform(0.55, 0.7), rng.uniform(0.1, 0.22)
    y = np.linspace(0.5, 1.7, 7)
    x = sway * np.sin((y - 0.5) * 5)
    tail = [bar(x[i], y[i], x[i + 1], y[i + 1], 0.08, 0.7) for i in range(6)]
    bows = [
        polygon(
            [(x[i] - 0.2, y[i] - 0.1), (x[i] + 0.2, y[i] + 0.1), (x[i] + 0.2, y[i] - 0.1), (x[i] - 0.2, y[i] + 0.1)],
            0.9,
        )
        for i in (3, 6)
    ]
    sail = [
        polygon([(0, -0.9), (wide, -0.2), (0, 0.6), (-wide, -0.2)]),
        polygon([(0, -0.9), (wide, -0.2), (0, 0.6)], 0.75),
    ]
    return [*tail, *bows, *sail]


class Kind(NamedTuple):
    """How a kind is drawn and named: `turn_deg` is the largest rotation, `solid` says that a texture would show."""

    draw: Callable[[Rng], list[Part]]
    plural: str
    turn_deg: float
    solid: bool
    holes: bool = False
    synonym: str | None = None


KINDS: dict[str, Kind] = {
    "ball": Kind(_ball, "balls", 15, True),
    "box": Kind(_box, "boxes", 12, True),
    "mug": Kind(_mug, "mugs", 15, True, holes=True, synonym="cup"),
    "ring": Kind(_ring, "rings", 180, False, holes=True),
    "key": Kind(_key, "keys", 180, False, holes=True),
    "tree": Kind(_tree, "trees", 8, True),
    "house": Kind(_house, "houses", 8, True),
    "car": Kind(_car, "cars", 12, True),
    "fish": Kind(_fish, "fish", 30, True),
    "star": Kind(_star, "stars", 36, True),
    "arrow": Kind(_arrow, "arrows", 180, True),
    "umbrella": Kind(_umbrella, "umbrellas", 25, True),
    "bicycle": Kind(_bicycle, "bicycles", 12, False, holes=True, synonym="bike"),
    "chair": Kind(_chair, "chairs", 10, False, holes=True),
    "lamp": Kind(_lamp, "lamps", 12, True),
    "flower": Kind(_flower, "flowers", 25, False),
    "leaf": Kind(_leaf, "leaves", 180, True),
    "bottle": Kind(_bottle, "bottles", 30, True),
    "ladder": Kind(_ladder, "ladders", 25, False, holes=True),
    "kite": Kind(_kite, "kites", 30, True),
}


def unit_shape(kind: str, rng: Rng) -> list[Part]:
    """A randomly varied, mirrored and turned shape of `kind`: longer side 1, centred on (0, 0)."""
    parts = KINDS[kind].draw(rng)
    turn = np.deg2rad(rng.uniform(-1, 1) * KINDS[kind].turn_deg)
    mirror = rng.choice([-1.0, 1.0])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([mirror, 1.0])
    turned = [part.points @ matrix.T for part in parts]
    drawn = np.concatenate([points for points, part in zip(turned, parts, strict=True) if part.shade > 0])
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    scale, centre = 1 / (high - low).max(), (low + high) / 2
    return [Part((points - centre) * scale, part.shade) for points, part in zip(turned, parts, strict=True)]
