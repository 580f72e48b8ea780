"""Generated scenes, to try everything without photos; as hard to classify by raw pixels as photos are.

A scene is a few objects of one kind (its class) among nuisances: colors, sizes, places, turns, surfaces, background,
pebbles, light, shadow, lens and noise, all drawn independently of the class. Its caption and answers are true.
Contrastive learning picks up first what two crops of one image share and other images do not. Here that has to be the
kind of object, so colors change within an image, and backgrounds are few.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from components.data.objects import OBJECTS
from components.data.truth import Truth

Floats = npt.NDArray[np.float32]
Color = tuple[int, int, int]

CLASSES: tuple[str, ...] = tuple(OBJECTS)
SIDE = 64  # pixels
FINER = 4  # objects are drawn this many times larger and then reduced
COLORS: dict[str, Color] = {
    "red": (214, 48, 44),
    "yellow": (244, 206, 44),
    "green": (52, 164, 66),
    "blue": (44, 104, 216),
    "purple": (146, 62, 186),
}
TONES: dict[str, Color] = {
    "white": (244, 238, 224),
    "dim": (176, 164, 146),
    "ink": (44, 36, 40),
    "brown": (122, 82, 52),
    "glass": (150, 182, 196),
}
BACKGROUNDS = {"grass": "on grass", "sand": "on sand", "wood": "on a wooden table"}  # answer, and in a caption
NUMBERS = {3: "three", 4: "four"}
HALF = (13.0, 16.0)  # half an object's length in pixels
SHAKE = 9.0  # pixels that an object may be off the middle of its quarter of the picture


@dataclass(frozen=True)
class Scene:
    pixels: npt.NDArray[np.uint8]  # [64, 64, 3]
    label: str  # one of CLASSES
    caption: str  # "three fish on a wooden table"
    questions: tuple[tuple[str, str], ...]  # (question, short answer): what, how many, background, yes or no
    truth: Truth


def draw(seed: int, index: int) -> Scene:
    """Returns the scene that `seed` and `index` determine; every ten from a multiple of ten hold each class once."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    # shuffled within its ten: with index % 10, whoever keeps every fifth picture for testing would test two classes
    order = np.random.default_rng([seed, index // len(CLASSES), 1]).permutation(len(CLASSES))
    label = CLASSES[order[index % len(CLASSES)]]
    r = np.random.default_rng([seed, index])
    background, count = str(r.choice(list(BACKGROUNDS))), int(r.choice(list(NUMBERS)))
    caption, questions = _texts(r, label, background, count)
    pixels, mask, colors, quarters = _pixels(r, label, background, count)
    truth = Truth(mask, label, background, tuple(colors), tuple(quarters))
    return Scene(pixels, label, caption, questions, truth)


def _texts(r: np.random.Generator, label: str, background: str, count: int) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Returns the caption and the questions, each in one of two wordings."""
    location, number = BACKGROUNDS[background], NUMBERS[count]
    objects = f"{number} {_plural(label)}"
    caption = (f"{objects} {location}", f"a picture of {objects} {location}")[r.integers(2)]
    absent_label = str(r.choice([name for name in CLASSES if name != label]))
    subject, answer = ((label, "yes"), (absent_label, "no"))[r.integers(2)]
    question_forms = (
        (("What is in the picture?", "What are these?"), _plural(label)),
        (("How many are there?", f"How many {_plural(label)} do you see?"), number),
        (("What is the background?", f"What are the {_plural(label)} on?"), background),
        ((f"Are there {_plural(subject)} in the picture?", f"Do you see {_plural(subject)}?"), answer),
    )
    return caption, tuple((wordings[r.integers(2)], reply) for wordings, reply in question_forms)


def _plural(noun: str) -> str:
    return {"fish": "fish", "butterfly": "butterflies", "cactus": "cacti"}.get(noun, f"{noun}s")


def _pixels(
    r: np.random.Generator, label: str, background: str, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[str], list[int]]:
    """Returns uint8 [64, 64, 3], and of its objects the mask [64, 64], colors and quarters.

    It is made of ground, pebbles, the objects' shadows, the objects in relief, then light, lens and noise.
    """
    angle, slope = r.uniform(0, 2 * np.pi), r.uniform(0.5, 1.0)
    lamp = np.array([np.cos(angle) * slope, np.sin(angle) * slope, 1.0], np.float32)  # the way to it
    objects, mask, colors, quarters = _objects(r, label, count)
    layer = np.asarray(objects, np.float32)
    cover = layer[..., 3:] / np.float32(255)  # [64, 64, 1]
    shadow = _blur(np.roll(cover, np.round(-3.5 * lamp[1::-1]).astype(int), (0, 1)), 2.0)
    leaves = _window(r, _leaves())[..., None]
    ground = _pebbles(r, _ground(r, background)) * (1 - r.uniform(0.3, 0.6) * shadow) * (1 - 0.4 * leaves)
    # the objects stand nearer to the lamp than the ground does, so that the leaves keep less from them
    surface = layer[..., :3] * _relief(cover, lamp) * _texture(r) * (1 - 0.1 * leaves)
    picture = (ground * (1 - cover) + surface * cover) * _light(r, lamp) * r.uniform(0.7, 1.3)
    noise = r.standard_normal((SIDE, SIDE, 3), np.float32) * r.uniform(3, 5)
    pixels: npt.NDArray[np.uint8] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return pixels, mask, colors, quarters


def _objects(
    r: np.random.Generator, label: str, count: int
) -> tuple[Image.Image, npt.NDArray[np.uint8], list[str], list[int]]:
    """Returns the objects as RGBA, 64x64, and their mask, colors and quarters.

    Each is near the middle of a quarter and in a color of its own; later ones hide earlier ones.
    """
    canvas = Image.new("RGBA", (SIDE * FINER,) * 2, (*TONES["ink"], 0))
    colors, quarters = [], r.permutation(4)[:count].tolist()
    for number, quarter in enumerate(quarters, 1):
        middle = [17 + 30 * half + r.uniform(-SHAKE, SHAKE) for half in (quarter % 2, quarter // 2)]
        colors.append(_object(r, ImageDraw.Draw(canvas), label, middle, number))
    numbers = canvas.getchannel("A")  # the pen writes an object's number in place of its opacity
    canvas.putalpha(numbers.point([0] + [255] * 255))
    return canvas.reduce(FINER), _mask(np.asarray(numbers), count), colors, quarters


def _mask(numbers: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """Returns the object of each pixel, [64, 64]; 0: objects cover at most half of it. numbers: of each finer pixel."""
    units = np.array([0] + [256**index for index in range(count)], np.uint32)  # a byte to count each object
    codes = units.take(numbers)  # faster than units[numbers]
    rows: npt.NDArray[np.uint32] = np.sum([codes[start::FINER] for start in range(FINER)], 0, np.uint32)
    sums: npt.NDArray[np.uint32] = np.sum([rows[:, start::FINER] for start in range(FINER)], 0, np.uint32)
    mask, max_coverage, total_coverage = (np.zeros((SIDE, SIDE), np.uint8) for _ in range(3))
    for number in range(1, count + 1):
        coverage = (sums >> 8 * (number - 1)).astype(np.uint8)
        mask[coverage > max_coverage] = number
        max_coverage, total_coverage = np.maximum(max_coverage, coverage), total_coverage + coverage
    mask[total_coverage <= FINER**2 // 2] = 0
    return mask


def _object(r: np.random.Generator, pen: ImageDraw.ImageDraw, label: str, middle: list[float], number: int) -> str:
    """Draws one object, which the edge of the image may cut. Returns its color.

    middle: of the object, x and y in pixels. number: of the object, written in place of the opacity.
    """
    name, color = list(COLORS.items())[r.integers(len(COLORS))]
    body = tuple(int(np.clip(c + r.integers(-14, 15), 0, 255)) for c in color)
    shade, pale = tuple(int(c * 0.68) for c in body), tuple(int(c * 0.5 + 120) for c in body)
    tones: dict[str, tuple[int, ...]] = {**TONES, "body": body, "shade": shade, "pale": pale}
    turn, mirror, half = np.radians(r.uniform(-15, 15)), r.choice([-1, 1]), r.uniform(*HALF)
    width, height = half * FINER * r.uniform(0.9, 1.0, 2)
    sides = width * mirror * np.cos(turn), width * mirror * np.sin(turn), -np.sin(turn), np.cos(turn), height
    ax, ay, bx, by, height = map(float, sides)  # numpy's own numbers are slow one by one
    center_x, center_y = (float(FINER * coordinate) for coordinate in middle)
    for points, tone, thick in OBJECTS[label](r):
        polygon = [(center_x + x * ax + y * height * bx, center_y + x * ay + y * height * by) for x, y in points]
        if thick:
            pen.line(polygon, (*tones[tone], number), max(1, round(thick * half * FINER)), joint="curve")
        else:
            pen.polygon(polygon, (*tones[tone], number))
    return name


def _blur(plane: Floats, radius: float) -> Floats:
    """Blurs [64, 64, 1] in 0 ... 1."""
    picture = Image.fromarray((plane[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, np.float32)[..., None] / np.float32(255)


def _relief(cover: Floats, lamp: Floats) -> Floats:
    """Light on the object if it were a cushion, [64, 64, 1]: its blurred silhouette is its height."""
    dy, dx = np.gradient(_blur(cover, 3.5)[..., 0])
    facing = (1 - 8 * (dx * lamp[0] + dy * lamp[1])) / np.sqrt((1 + 64 * (dx**2 + dy**2)) * (lamp**2).sum())
    shading: Floats = (0.45 + 0.62 * np.clip(1.25 * facing, 0, 1.5)).astype(np.float32)[..., None]
    return shading


def _texture(r: np.random.Generator) -> Floats:
    """Returns a surface texture [64, 64, 1]: smooth, mottled or brushed, too faint to change the color."""
    grid = ((1, 1), (16, 16), (32, 4))[r.integers(3)]
    return _stretch(r.uniform(0.86, 1.14, grid), SIDE)[..., None]


def _stretch(grid: npt.NDArray[np.float64], side: int) -> Floats:
    return np.asarray(Image.fromarray(grid.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))


def _light(r: np.random.Generator, lamp: Floats) -> Floats:
    """Returns the light's factor per pixel after falloff, vignette and tint, [64, 64, 3]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)[..., None]
    falloff = 1 + r.uniform(0, 0.25) * (x * lamp[0] + y * lamp[1])
    vignette = 1 - r.uniform(0, 0.3) * (x**2 + y**2) / 2
    tint = 1 + r.uniform(-0.04, 0.04) * np.array([1, 0.1, -1])
    light: Floats = (falloff * vignette * tint).astype(np.float32)
    return light


def _pebbles(r: np.random.Generator, ground: Floats) -> Floats:
    """Up to four small gray things that are no object, lying about."""
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).resize((SIDE * 2,) * 2)
    pen = ImageDraw.Draw(picture)
    for _ in range(r.integers(5)):
        x, y, radius, gray = r.uniform(0, SIDE * 2), r.uniform(0, SIDE * 2), r.uniform(3, 6), int(r.uniform(70, 200))
        pen.ellipse((x - radius, y - 0.8 * radius, x + radius, y + 0.8 * radius), (gray,) * 3, (gray // 2,) * 3)
    return np.asarray(picture.reduce(2), np.float32)


def _ground(r: np.random.Generator, background: str) -> Floats:
    """Returns a window of the one large image of a background, [64, 64, 3], so that images share backgrounds."""
    return _window(r, _grounds()[background]) * np.float32(r.uniform(0.85, 1.1))


def _window(r: np.random.Generator, image: Floats) -> Floats:
    x, y = r.integers(len(image) - SIDE, size=2)
    return image[y : y + SIDE, x : x + SIDE][:, :: r.choice([-1, 1])]


@cache
def _leaves() -> Floats:
    """[384, 384] in 0 ... 1, where a tree outside the picture keeps the light away.

    What makes raw pixels useless; and being much the same in every picture, it tells a learner nothing about this one.
    """
    cloud = _stretch(np.random.default_rng(1).uniform(-1, 1, (30, 30)), 384)
    shade: Floats = 1 / (1 + np.exp(-cloud / np.float32(0.1)))
    return shade


@cache
def _grounds() -> dict[str, Floats]:
    """[192, 192, 3] of each background, muted so that objects stand out; the same for every seed."""
    r, side = np.random.default_rng(0), 192
    y = np.mgrid[:side, :side][0].astype(np.float32)

    def cloud(rows: int, columns: int) -> Floats:  # smooth noise, about -1 ... 1
        return _stretch(r.uniform(-1, 1, (rows, columns)), side)

    paints: dict[str, tuple[Color, npt.NDArray[np.floating]]] = {
        "grass": ((112, 132, 84), 9 * cloud(64, 96) + 8 * cloud(8, 8) + 7 * cloud(40, 150)),
        "sand": ((196, 178, 140), 7 * np.sin(y / 3.4 + 2.5 * cloud(7, 7)) + 7 * cloud(150, 150)),
        "wood": ((152, 124, 98), 7 * np.sin(0.9 * y + 5 * cloud(10, 4)) + 5 * cloud(96, 8) - 38 * (y % 24 < 1.2)),
    }
    return {name: (np.array(color) + grain[..., None]).astype(np.float32) for name, (color, grain) in paints.items()}
