"""A tool must be tried before any photo is at hand: small made-up scenes, as hard for raw pixels as photos are, and true in every word.

A scene is one object (its class) among nuisances: color, size, place, turn, surface, background, pebbles, light, shadow, lens and sensor noise.
All are drawn independently of the class. Colors and backgrounds are few and shared by all classes on purpose: whatever two crops of one picture
share and other pictures do not is what contrastive learning picks up first, and here that has to be the object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from components.data.objects import OBJECTS

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CLASSES: tuple[str, ...] = tuple(OBJECTS)
SIDE = 64  # pixels
FINER = 4  # objects are drawn this many times larger and then reduced
COLORS = {"red": (214, 48, 44), "yellow": (240, 200, 40), "green": (52, 164, 66), "blue": (44, 104, 216), "purple": (146, 62, 186)}
TONES = {"white": (244, 238, 224), "dim": (176, 164, 146), "ink": (44, 36, 40), "brown": (122, 82, 52), "glass": (150, 182, 196)}
BACKGROUNDS = {  # as an answer, and as the end of "a red fish ..."
    "grass": "on grass",
    "sand": "on sand",
    "wood": "on a wooden table",
    "a brick wall": "in front of a brick wall",
    "water": "on water",
    "the night sky": "in the night sky",
}
SIZES = {"small": (17.0, 19.5), "big": (24.0, 27.0)}  # half the length of the object, in pixels; the gap keeps the words true
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "center": (0, 0)}
WHERE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "center": "in the center"}


@dataclass(frozen=True)
class Scene:
    pixels: Pixels  # [64, 64, 3]
    label: str  # one of CLASSES
    caption: str  # "a small red fish on a wooden table, on the left"
    questions: tuple[tuple[str, str], ...]  # (question, short answer)


def draw(seed: int, index: int) -> Scene:
    """The scene that `seed` and `index` alone decide; every ten consecutive indices from a multiple of ten hold every class once."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    # shuffled within its ten: with index % 10, whoever keeps every fifth picture for testing would test two classes
    turn = np.random.default_rng([seed, index // len(CLASSES), 1]).permutation(len(CLASSES))
    label = CLASSES[turn[index % len(CLASSES)]]
    r = np.random.default_rng([seed, index])
    color, background, size, place = (str(r.choice(list(words))) for words in (COLORS, BACKGROUNDS, SIZES, PLACES))
    caption, questions = _words(r, label, color, background, size, place)
    return Scene(_pixels(r, label, color, background, size, place), label, caption, questions)


def scenes(seed: int, count: int) -> Iterator[Scene]:
    return (draw(seed, index) for index in range(count))


def _words(
    r: np.random.Generator, label: str, color: str, background: str, size: str, place: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    named = _a(label)
    thing, scene, where = _a(f"{size} {color} {label}"), BACKGROUNDS[background], WHERE[place]
    caption = (f"{thing} {scene}, {where}", f"{where}, {thing} {scene}", f"a picture of {thing} {scene}, {where}")[r.integers(3)]
    asked = label if r.random() < 0.5 else str(r.choice([other for other in CLASSES if other != label]))
    ways = (
        (("What is in the picture?", "What is this?"), named),
        ((f"What color is the {label}?", f"Which color does the {label} have?"), color),
        ((f"Where is the {label}?", f"In which part of the picture is the {label}?"), place),
        (("What is the background?", f"What is behind the {label}?"), background),
        ((f"Is the {label} big or small?", f"What size is the {label}?"), size),
        ((f"Is there {_a(asked)} in the picture?", f"Do you see {_a(asked)}?"), "yes" if asked == label else "no"),
    )
    return caption, tuple((questions[r.integers(2)], answer) for questions, answer in ways)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _pixels(r: np.random.Generator, label: str, color: str, background: str, size: str, place: str) -> Pixels:
    """uint8 [64, 64, 3]: background and pebbles, the object's shadow, the object in its own relief, then light, lens and noise."""
    angle, slope = r.uniform(0, 2 * np.pi), r.uniform(0.5, 1.0)
    light = np.array([np.cos(angle) * slope, np.sin(angle) * slope, 1.0], np.float32)  # towards the lamp
    layer = _object(r, label, _jittered(r, COLORS[color]), r.uniform(*SIZES[size]), place)
    cover = np.asarray(layer, np.float32)[..., 3:] / 255  # [64, 64, 1]
    shadow = _blurred(np.roll(cover, np.round(-3.5 * light[1::-1]).astype(int), (0, 1)), 2.0)
    ground = _pebbles(r, _ground(r, background)) * (1 - r.uniform(0.3, 0.6) * shadow)
    surface = np.asarray(layer, np.float32)[..., :3] * _relief(cover, light) * _texture(r)
    picture = ground * (1 - cover) + surface * cover

    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)[..., None]
    lamp = 1 + r.uniform(0, 0.25) * (x * light[0] + y * light[1])
    vignette = 1 - r.uniform(0, 0.3) * (x**2 + y**2) / 2
    warm = np.array([1, 1, 1]) + r.uniform(-0.07, 0.07) * np.array([1, 0.1, -1])
    picture = picture * lamp * vignette * warm * r.uniform(0.65, 1.15)
    noise = r.standard_normal((SIDE, SIDE, 3), np.float32) * r.uniform(2, 8)
    pixels: Pixels = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return pixels


def _object(r: np.random.Generator, label: str, body: tuple[int, ...], half: float, place: str) -> Image.Image:
    """The object as RGBA, 64x64, the middle of what is seen of it where `place` says."""
    shade, pale = (tuple(int(c * 0.68) for c in body), tuple(int(c * 0.5 + 120) for c in body))
    tones = {**TONES, "body": body, "shade": shade, "pale": pale}
    turn, mirror = np.radians(r.uniform(-25, 25)), r.choice([-1, 1])
    sx, sy = half * FINER * r.uniform(0.9, 1.0, 2)
    across, down = (sx * mirror * np.cos(turn), sx * mirror * np.sin(turn)), (-sy * np.sin(turn), sy * np.cos(turn))
    canvas = Image.new("RGBA", (SIDE * FINER * 3 // 2,) * 2, (*TONES["ink"], 0))
    middle, pen = canvas.width / 2, ImageDraw.Draw(canvas)
    for points, tone, width in OBJECTS[label](r):
        placed = [(middle + x * across[0] + y * down[0], middle + x * across[1] + y * down[1]) for x, y in points]
        if width:
            pen.line(placed, tones[tone], max(1, round(width * half * FINER)), joint="curve")
        else:
            pen.polygon(placed, tones[tone])
    left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
    away = r.uniform(8, 11) if place != "center" else 0.0
    dx, dy = (FINER * (away * step + r.uniform(-2, 2)) for step in PLACES[place])
    x0, y0 = round((left + right - SIDE * FINER) / 2 - dx), round((top + bottom - SIDE * FINER) / 2 - dy)
    return canvas.crop((x0, y0, x0 + SIDE * FINER, y0 + SIDE * FINER)).reduce(FINER)


def _jittered(r: np.random.Generator, color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(int(np.clip(c + r.integers(-14, 15), 0, 255)) for c in color)


def _blurred(plane: Floats, radius: float) -> Floats:
    """[64, 64, 1] in 0 ... 1, likewise."""
    picture = Image.fromarray((plane[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, np.float32)[..., None] / 255


def _relief(cover: Floats, light: Floats) -> Floats:
    """Light on the object if it were a cushion, [64, 64, 1]: its blurred silhouette is its height."""
    height = _blurred(cover, 3.5)[..., 0]
    dy, dx = np.gradient(height)
    slant = -8 * (dx * light[0] + dy * light[1])
    shade = (1 + slant) / np.sqrt((1 + 64 * (dx**2 + dy**2)) * (light**2).sum()) * 1.25
    lit: Floats = (0.45 + 0.62 * np.clip(shade, 0, 1.5)).astype(np.float32)[..., None]
    return lit


def _texture(r: np.random.Generator) -> Floats:
    """What the surface is made of, [64, 64, 1]: smooth, mottled or brushed, faint enough to leave the color alone."""
    rows, columns = ((1, 1), (16, 16), (32, 4))[r.integers(3)]
    grain = Image.fromarray(r.uniform(0.86, 1.14, (rows, columns)).astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(grain, np.float32)[..., None]


def _pebbles(r: np.random.Generator, ground: Floats) -> Floats:
    """Up to four small things that are no object, lying about."""
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).resize((SIDE * 2,) * 2)
    pen = ImageDraw.Draw(picture)
    for _ in range(r.integers(5)):
        x, y, s = r.uniform(0, SIDE * 2), r.uniform(0, SIDE * 2), r.uniform(3, 6)
        gray = int(r.uniform(70, 200))
        pen.ellipse((x - s, y - s * 0.8, x + s, y + s * 0.8), (gray, gray, gray - 8), (gray // 2,) * 3)
    return np.asarray(picture.reduce(2), np.float32)


def _ground(r: np.random.Generator, background: str) -> Floats:
    """A window of the one large picture that there is of each background, [64, 64, 3]: a kind of place, not this picture's fingerprint."""
    whole = _grounds()[background]
    x, y = r.integers(whole.shape[1] - SIDE), r.integers(whole.shape[0] - SIDE)
    window = whole[y : y + SIDE, x : x + SIDE]
    return window[:, :: r.choice([-1, 1])] * np.float32(r.uniform(0.85, 1.1))


@cache
def _grounds() -> dict[str, Floats]:
    """float32 [192, 192, 3] of each background, muted so that objects stand out; not touched by any scene's seed."""
    r, n = np.random.default_rng(0), 192
    y, x = np.mgrid[:n, :n].astype(np.float32)

    def cloud(rows: int, columns: int) -> Floats:  # smooth noise, about -1 ... 1
        coarse = Image.fromarray(r.uniform(-1, 1, (rows, columns)).astype(np.float32))
        return np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC), np.float32)

    course = y // 12
    mortar = np.maximum(y % 12 < 1.5, (x + 12 * (course % 2)) % 24 < 1.5)
    stars = np.asarray(Image.fromarray((r.random((n, n)) > 0.994).astype(np.float32) * 255).filter(ImageFilter.GaussianBlur(0.6))) \
        if False else (r.random((n, n)) > 0.993) * r.uniform(60, 190, (n, n))
    waves = np.sin(y / 2.6 + 1.6 * cloud(12, 12) + 2 * np.sin(x / 17))
    board = np.sin((x + 7 * cloud(6, 6)) * 0 + y * 0.9 + 5 * cloud(10, 4))
    shades = {
        "grass": ((112, 132, 84), 9 * cloud(64, 96) + 8 * cloud(8, 8) + 7 * cloud(40, 150)),
        "sand": ((196, 178, 140), 7 * np.sin(y / 3.4 + 2.5 * cloud(7, 7)) + 7 * cloud(150, 150)),
        "wood": ((158, 122, 88), 7 * board + 5 * cloud(96, 8) - 38 * (y % 24 < 1.2)),
        "a brick wall": ((150, 104, 90), 34 * mortar + (1 - mortar) * 7 * cloud(16, 8) + 6 * cloud(120, 120)),
        "water": ((104, 138, 154), 10 * waves + 6 * cloud(10, 6)),
        "the night sky": ((34, 38, 62), stars + 7 * cloud(5, 5)),
    }
    return {name: (np.array(color, np.float32) + shade[..., None]).astype(np.float32) for name, (color, shade) in shades.items()}
