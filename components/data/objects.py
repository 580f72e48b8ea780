"""Ten small objects for the generated photos (`scenes`). Each object is a list of flat parts.

Coordinates are those of the object's own square: x to the right and y down, both from -1 to 1. A part has a tone
(`body`, `pale`, `ink`, …) and no color. `scenes` chooses color and position, in the same way for all classes.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Points = list[tuple[float, float]]


class Part(NamedTuple):
    points: Points
    tone: str  # one of scenes.TONES
    width: float = 0.0  # 0: a filled polygon, else a line this thick


def _oval(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, turn: float = 0) -> Points:
    """Returns an ellipse, or its arc from `start` to `stop` degrees (clockwise from the right), turned by `turn`."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = [(rx * u, ry * v) for u, v in _arc(start, stop)]
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in points]


@lru_cache
def _arc(start: float, stop: float) -> Points:
    """Returns an arc of the unit circle, with a point at least every 15 degrees."""
    steps = max(6, round(abs(stop - start) / 15))
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _fish(r: np.random.Generator) -> list[Part]:
    tail = r.uniform(0.85, 1.0)
    parts = [
        Part([(-0.45, 0), (-tail, -0.55), (-0.8, 0), (-tail, 0.55)], "shade"),
        Part([(-0.35, -0.3), (-0.2, -0.75), (0.35, -0.62), (0.4, -0.3)], "shade"),
        Part([(-0.1, 0.35), (-0.25, 0.72), (0.2, 0.42)], "shade"),
        Part(_oval(0.2, 0, 0.8, 0.5), "body"),
        Part(_oval(0.2, 0, 0.8, 0.5, 25, 155), "pale"),
    ]
    for column in range(5):  # scales
        for row in range(4 - column % 2):
            y = (row - 1.5 + 0.5 * (column % 2)) * 0.22
            parts.append(Part(_oval(-0.32 + 0.17 * column, y, 0.1, 0.11, 90, 270), "ink", 0.035))
    parts += [Part(_oval(0.42, 0, 0.14, 0.42, -80, 80), "ink", 0.05), Part(_oval(0.7, -0.12, 0.13, 0.13), "white")]
    return [*parts, Part(_oval(0.73, -0.12, 0.07, 0.07), "ink"), Part([(0.98, 0.1), (0.8, 0.18)], "ink", 0.05)]


def _house(r: np.random.Generator) -> list[Part]:
    eaves, door = r.uniform(-0.2, -0.05), r.choice([-0.42, 0.42])
    parts = [
        Part(_box(0.35, -0.85, 0.6, -0.3), "brown"),
        Part(_box(-0.72, eaves, 0.72, 0.95), "body"),
        Part([(-1, eaves + 0.05), (0, -0.98), (1, eaves + 0.05)], "shade"),
    ]
    for row in range(1, 4):  # roof tiles
        y = -0.98 + (eaves + 1.03) * row / 4
        parts.append(Part([(-row / 4, y), (row / 4, y)], "ink", 0.04))
    w = -door  # the window, on the other side of the door
    parts += [Part(_box(w - 0.24, 0.15, w + 0.24, 0.62), "white"), Part(_box(w - 0.17, 0.22, w + 0.17, 0.55), "glass")]
    parts += [Part([(w, 0.15), (w, 0.62)], "white", 0.06), Part([(w - 0.24, 0.385), (w + 0.24, 0.385)], "white", 0.06)]
    parts += [
        Part(_box(door - 0.2, 0.25, door + 0.2, 0.95), "brown"),
        Part(_oval(door + 0.1, 0.62, 0.05, 0.05), "white"),
    ]
    return [*parts, Part(_oval(0, -0.45, 0.15, 0.15), "white"), Part(_oval(0, -0.45, 0.09, 0.09), "glass")]


def _tree(r: np.random.Generator) -> list[Part]:
    parts = [
        Part([(-0.13, 0.95), (-0.09, 0.1), (0.09, 0.1), (0.15, 0.95)], "brown"),
        Part([(0, 0.55), (-0.4, 0.15)], "brown", 0.09),
        Part([(0, 0.45), (0.4, 0.05)], "brown", 0.09),
    ]
    bumps = [(-0.52, -0.05), (0.52, -0.08), (-0.38, -0.5), (0.4, -0.5), (0, -0.62), (0, -0.1)]
    parts += [Part(_oval(x, y, 0.42, 0.38), "shade") for x, y in bumps]
    parts += [Part(_oval(x - 0.04, y - 0.06, 0.34, 0.29), "body") for x, y in bumps]
    for x, y in bumps:  # leaves
        for turn in r.uniform(0, 360, 3):
            u, v = x + 0.2 * math.cos(turn), y - 0.05 + 0.18 * math.sin(turn)
            parts.append(Part(_oval(u, v, 0.11, 0.05, turn=turn), "pale"))
    return parts


def _sailboat(r: np.random.Generator) -> list[Part]:
    top = r.uniform(-0.98, -0.85)
    return [
        Part([(-0.02, 0.5), (-0.02, top)], "brown", 0.07),
        Part([(0.06, top + 0.05), (0.35, -0.3), (0.78, 0.36), (0.06, 0.36)], "body"),
        Part([(-0.1, top + 0.15), (-0.1, 0.36), (-0.72, 0.36)], "white"),
        Part([(0.06, -0.22), (0.4, -0.22), (0.56, 0), (0.06, 0)], "white"),
        Part([(-0.1, 0.1), (-0.5, 0.1)], "shade", 0.06),
        Part([(-0.02, top), (-0.32, top + 0.08), (-0.02, top + 0.18)], "shade"),
        Part([(-0.98, 0.46), (0.98, 0.46), (0.66, 0.9), (-0.66, 0.9)], "body"),
        Part([(-0.92, 0.55), (0.92, 0.55)], "white", 0.09),
        *(Part(_oval(x, 0.73, 0.07, 0.07), "ink") for x in (-0.4, 0, 0.4)),
    ]


def _mushroom(r: np.random.Generator) -> list[Part]:
    stem = r.uniform(0.22, 0.32)
    parts = [
        Part([(-stem, 0.05), (stem, 0.05), (stem + 0.08, 0.9), (-stem - 0.08, 0.9)], "white"),
        Part(_oval(0, 0.88, stem + 0.08, 0.1), "white"),
        Part([(-stem * 0.4, 0.3), (-stem * 0.45, 0.85)], "dim", 0.05),
        Part([(stem * 0.4, 0.3), (stem * 0.45, 0.85)], "dim", 0.05),
        Part(_oval(0, 0.08, 0.96, 0.22), "shade"),
        Part(_oval(0, 0.08, 0.7, 0.12), "dim"),
        Part(_oval(0, 0.08, 0.98, 1.02, 180, 360), "body"),
        Part([(-0.98, 0.06), (0.98, 0.06)], "ink", 0.04),
    ]
    spots = [(-0.55, -0.3, 0.17), (0.02, -0.62, 0.18), (0.55, -0.38, 0.16)]
    spots += [(-0.12, -0.2, 0.15), (0.32, -0.06, 0.1), (-0.72, -0.04, 0.09)]
    return parts + [Part(_oval(x, y, s * 1.1, s), "white") for x, y, s in spots]


def _umbrella(r: np.random.Generator) -> list[Part]:
    ribs, arc = [-0.98, -0.6, -0.21, 0.21, 0.6, 0.98], [math.pi / 12 * step for step in range(7)]
    hook = r.choice([-1, 1])
    parts = [
        Part([(0, -0.9), (0, 0.75)], "brown", 0.09),
        Part(_oval(0.14 * hook, 0.75, 0.14, 0.17, 0, 180), "brown", 0.09),
        Part([(0, -1), (0, -0.8)], "ink", 0.07),
    ]
    for i in range(5):  # panels, each between two ribs and with its scallop
        left, right = ribs[i], ribs[i + 1]
        left_edge = [(left * math.sin(a), 0.05 - 0.93 * math.cos(a)) for a in arc]
        right_edge = [(right * math.sin(a), 0.05 - 0.93 * math.cos(a)) for a in reversed(arc)]
        scallop = _oval((left + right) / 2, 0.05, (right - left) / 2, 0.13, 0, -180)
        parts += [
            Part(right_edge + left_edge + scallop[::-1], "pale" if i % 2 else "body"),
            Part(left_edge, "ink", 0.035),
        ]
    return [*parts, Part(right_edge, "ink", 0.035)]


def _butterfly(r: np.random.Generator) -> list[Part]:
    lift = r.uniform(-8, 8)
    parts = []
    for side in (-1, 1):
        upper, lower = side * (-35 + lift), side * (30 + lift)
        parts += [
            Part(_oval(side * 0.48, 0.42, 0.4, 0.3, turn=lower), "ink"),
            Part(_oval(side * 0.47, 0.41, 0.32, 0.22, turn=lower), "pale"),
            Part(_oval(side * 0.52, -0.33, 0.58, 0.38, turn=upper), "ink"),
            Part(_oval(side * 0.51, -0.32, 0.49, 0.29, turn=upper), "body"),
            Part(_oval(side * 0.66, -0.46, 0.15, 0.13), "white"),
            Part(_oval(side * 0.66, -0.46, 0.07, 0.06), "ink"),
            Part(_oval(side * 0.36, -0.16, 0.08, 0.08), "white"),
            Part(_oval(side * 0.52, 0.46, 0.09, 0.09), "ink"),
            Part([(0, -0.4), (side * 0.12, -0.75), (side * 0.28, -0.9)], "ink", 0.05),
        ]
    return [*parts, Part(_oval(0, 0.1, 0.1, 0.6), "brown"), Part(_oval(0, -0.45, 0.12, 0.13), "ink")]


def _cactus(r: np.random.Generator) -> list[Part]:
    side = r.choice([-1, 1])
    low, high = r.uniform(-0.05, 0.1), r.uniform(-0.3, -0.15)
    parts = []
    for arm, y, top in ((side, low, -0.35), (-side, high, -0.6)):
        parts += [
            Part([(0, y), (arm * 0.62, y)], "body", 0.26),
            Part([(arm * 0.62, y + 0.13), (arm * 0.62, top)], "body", 0.28),
        ]
        parts += [
            Part(_oval(arm * 0.62, top, 0.14, 0.14), "body"),
            Part([(arm * 0.62, y), (arm * 0.62, top)], "shade", 0.05),
        ]
    parts += [Part(_box(-0.3, -0.7, 0.3, 0.5), "body"), Part(_oval(0, -0.7, 0.3, 0.28), "body")]
    parts += [Part([(x, -0.85 + abs(x)), (x, 0.5)], "shade", 0.06) for x in (-0.17, 0, 0.17)]
    for row in range(6):  # spines
        for x in (-0.25, -0.085, 0.085, 0.25):
            y = -0.68 + 0.19 * row
            parts.append(Part([(x - 0.05, y - 0.04), (x, y + 0.03), (x + 0.05, y - 0.04)], "white", 0.03))
    parts.append(Part([(-0.48, 0.45), (0.48, 0.45), (0.36, 0.97), (-0.36, 0.97)], "brown"))
    return [*parts, Part(_box(-0.54, 0.4, 0.54, 0.56), "dim")]


def _snail(r: np.random.Generator) -> list[Part]:
    turns, x, y = r.uniform(2.4, 2.9), -0.18, -0.1
    spiral = []
    for i in range(40):
        a, s = 2 * math.pi * turns * i / 39, 0.62 * i / 39
        spiral.append((x + s * math.cos(a), y + s * math.sin(a)))
    return [
        Part([(0.62, 0.2), (0.5, -0.62)], "dim", 0.07),
        Part([(0.8, 0.2), (0.88, -0.58)], "dim", 0.07),
        Part(_oval(0.5, -0.64, 0.09, 0.09), "ink"),
        Part(_oval(0.88, -0.6, 0.09, 0.09), "ink"),
        Part(
            [(-1, 0.8), (-0.5, 0.45), (0.35, 0.5), (0.45, 0.05), (0.75, -0.08), (0.98, 0.12), (0.9, 0.5), (0.65, 0.8)],
            "white",
        ),
        Part([(-0.95, 0.78), (0.68, 0.78)], "dim", 0.07),
        Part(_oval(0.82, 0.28, 0.1, 0.08, 20, 120), "ink", 0.04),
        Part(_oval(x, y, 0.7, 0.7), "body"),
        Part(spiral, "ink", 0.08),
        Part(_oval(x, y, 0.68, 0.68), "shade", 0.06),
    ]


def _car(r: np.random.Generator) -> list[Part]:
    roof = r.uniform(-0.62, -0.5)
    parts = [
        Part([(-0.72, -0.02), (-0.46, roof), (0.3, roof), (0.62, -0.02)], "body"),
        Part([(-0.56, -0.04), (-0.38, roof + 0.11), (-0.1, roof + 0.11), (-0.1, -0.04)], "glass"),
        Part([(0.0, -0.04), (0.0, roof + 0.11), (0.23, roof + 0.11), (0.46, -0.04)], "glass"),
        Part([(-0.98, 0.05), (-0.9, -0.06), (0.7, -0.06), (0.95, 0.06), (0.99, 0.42), (-0.99, 0.42)], "body"),
        Part([(-0.99, 0.3), (0.99, 0.3), (0.97, 0.46), (-0.97, 0.46)], "shade"),
        Part([(-0.05, -0.02), (-0.05, 0.4)], "ink", 0.035),
        Part([(0.05, 0.1), (0.18, 0.1)], "white", 0.06),
        Part(_oval(0.9, 0.15, 0.1, 0.09), "white"),
        Part(_box(-0.99, 0.06, -0.88, 0.2), "brown"),
    ]
    for x in (-0.55, 0.55):
        parts += [Part(_oval(x, 0.42, 0.27, 0.27), "ink"), Part(_oval(x, 0.42, 0.14, 0.14), "white")]
        parts.append(Part(_oval(x, 0.42, 0.06, 0.06), "dim"))
    return parts


OBJECTS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "butterfly": _butterfly,
    "cactus": _cactus,
    "car": _car,
    "fish": _fish,
    "house": _house,
    "mushroom": _mushroom,
    "sailboat": _sailboat,
    "snail": _snail,
    "tree": _tree,
    "umbrella": _umbrella,
}
