"""A method says in words how a picture is looked at; here the words are carried out, a whole batch at a time.

The definitions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize),
except that each picture of a batch draws its own parameters, and that they depend on (seed, epoch, row, view) alone:
not on workers, ranks or restarts. Brightness, contrast, saturation and gray are affine in RGB, so any order of them is
one 3 × 4 matrix a picture; only hue is not, so what comes before it and what comes after it are two such matrices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from components.data.photos import Photos

GRAY = torch.tensor([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale
ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # of brightness, contrast, saturation, hue
TRIES = 10  # of a crop before the largest one in the middle is taken, as torchvision
NEEDED = 2 * TRIES + 2 + 11  # numbers a view takes


@dataclass(frozen=True)
class Jitter:
    """ColorJitter, applied with probability p, in random order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 0.8


@dataclass(frozen=True)
class View:
    """One look at a picture; probabilities are of each step being taken at all.

    size: side in pixels; crop: share of the area; gray_first: RandomGrayscale before the jitter, as in MoCo v1.
    blur: sigma in pixels is uniform in `sigma`, the kernel a tenth of the view wide (SimCLR, appendix A).
    """

    size: int
    crop: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: Jitter | None = None
    gray: float = 0.0
    gray_first: bool = False
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


@dataclass(frozen=True)
class Draws:
    """Not a look but luck: `count` numbers in [0, 1) a picture, for what a method does with its views (masks, places).

    Like every parameter of a view they depend on seed, epoch and picture alone, not on ranks or restarts.
    """

    count: int


@dataclass(frozen=True)
class Labels:
    """Not a look but what the picture shows; who asks for it is given only pictures that have a label."""


def uniform(seed: int, epoch: int, rows: np.ndarray, view: int, count: int) -> Tensor:
    """Numbers in [0, 1) that depend on nothing but the arguments: float64 [len(rows), count].

    splitmix64 (Steele, Lea & Flood, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195) as a hash of the place.
    """
    state: np.ndarray | np.uint64 = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in (seed, epoch, view):
            state = _mix(np.uint64(word) + state * np.uint64(0x9E3779B97F4A7C15))
        per_row = _mix(rows.astype(np.uint64) + state)[:, None]
        bits = _mix(per_row + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def more(draws: Tensor, count: int) -> Tensor:
    """Any number of numbers in [0, 1) from a picture's two `draws` [B, 2]: float32 [B, count], on their device.

    For a method that learns from its backbone alone how many it needs (an order of its patches). splitmix64 again.
    """
    high, low = (draws.float() * 2**24).long().unbind(1)  # whole: the draws have 24 bits
    golden, first, second = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    z = (high << 24 | low)[:, None] + golden * torch.arange(1, count + 1, device=draws.device)
    z = (z ^ (z >> 30 & 2**34 - 1)) * first  # int64 wraps around, and its shift is arithmetic
    z = (z ^ (z >> 27 & 2**37 - 1)) * second
    z = z ^ (z >> 31 & 2**33 - 1)
    return (z >> 40 & 2**24 - 1).float() * 2.0**-24


def look(
    photos: Photos, rows: np.ndarray, views: Sequence[View | Draws | Labels], seed: int, epoch: int
) -> list[Tensor]:
    """For each View uint8 [B, 3, size, size], for each Draws float32 [B, count], for Labels int64 [B]; B: len(rows)."""
    found = []
    for i, view in enumerate(views):
        if isinstance(view, Draws):
            found.append(uniform(seed, epoch, rows, i, view.count).float().clamp_max_(1 - 2**-24))  # never rounded to 1
        elif isinstance(view, Labels):
            found.append(photos.labels(rows))
        else:
            found.append(render(photos, rows, view, uniform(seed, epoch, rows, i, NEEDED)))
    return found


def render(photos: Photos, rows: np.ndarray, view: View, draws: Tensor) -> Tensor:
    """One view of each picture from its own `draws` [B, NEEDED]: uint8 [B, 3, size, size]."""
    crop, rest = draws[:, : 2 * TRIES + 2], draws[:, 2 * TRIES + 2 :].float()
    shapes = torch.from_numpy(photos.shapes[rows])
    boxes = crop_boxes(shapes, view, crop)
    out = torch.empty(len(rows), 3, view.size, view.size, dtype=torch.uint8)
    for place, row, (top, left, height, width), turn in zip(
        out, rows.tolist(), boxes.tolist(), (rest[:, 0] < view.flip).tolist(), strict=True
    ):
        box = photos[row][None, :, top : top + height, left : left + width]
        small = interpolate(box, (view.size, view.size), mode="bilinear", antialias=True)[0]
        place[:] = small.flip(-1) if turn else small
    return finish(out, view, rest[:, 1:])


def crop_boxes(shapes: Tensor, view: View, draws: Tensor) -> Tensor:
    """RandomResizedCrop's boxes in pictures of `shapes` [B, 2]: int64 [B, 4], top, left, height, width."""
    height, width = shapes[:, :1].double(), shapes[:, 1:].double()
    area = height * width * (view.crop[0] + (view.crop[1] - view.crop[0]) * draws[:, :TRIES])
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio = torch.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()  # [B, TRIES]
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    natural = width / height  # the largest box in the middle, where no try fits
    whole_w = torch.where(natural > view.ratio[1], (height * view.ratio[1]).round(), width)
    whole_h = torch.where(natural < view.ratio[0], (width / view.ratio[0]).round(), height)
    found = fits.any(1, keepdim=True)
    h = torch.where(found, h.gather(1, first), whole_h)
    w = torch.where(found, w.gather(1, first), whole_w)
    top = torch.where(found, (draws[:, -2:-1] * (height - h + 1)).floor(), ((height - h) / 2).round())
    left = torch.where(found, (draws[:, -1:] * (width - w + 1)).floor(), ((width - w) / 2).round())
    return torch.cat([top, left, h, w], 1).long()


def finish(images: Tensor, view: View, draws: Tensor) -> Tensor:
    """Color, blur and solarize: uint8 [B, 3, S, S] and draws [B, 10] -> uint8 [B, 3, S, S]."""
    if view.jitter is None and not (view.gray or view.blur or view.solarize):
        return images
    x = color(images.float(), view, draws[:, :7])
    if view.blur:
        chosen = draws[:, 7] < view.blur
        sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draws[chosen, 8]
        x[chosen] = gaussian_blur(x[chosen], sigma, max(3, view.size // 10 | 1))
    if view.solarize:
        chosen = (draws[:, 9] < view.solarize)[:, None, None, None]
        x = torch.where(chosen & (x >= 128), 255 - x, x)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def color(x: Tensor, view: View, draws: Tensor) -> Tensor:
    """Jitter and gray on float [B, 3, S, S] in 0 … 255, from draws [B, 7]: p, four strengths, order, gray."""
    jitter = view.jitter or Jitter(0, 0, 0, 0, p=0)
    jittered = draws[:, 0] < jitter.p
    spread = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation])
    low = (1 - spread).clamp_min(0)
    factors = torch.where(jittered[:, None], low + (1 + spread - low) * draws[:, 1:4], 1.0)  # [B, 3]
    shift = torch.where(jittered, (2 * draws[:, 4] - 1) * jitter.hue, 0.0)  # [B], in turns
    order = ORDERS[(draws[:, 5] * len(ORDERS)).long()]  # [B, 4]
    gray = torch.where(draws[:, 6] < view.gray, 0.0, 1.0)  # as a saturation factor
    hue_at = (order == 3).int().argmax(1)  # [B]

    start = [(torch.full_like(hue_at, 2), gray, torch.ones_like(jittered))] if view.gray_first else []
    end = [] if view.gray_first else [(torch.full_like(hue_at, 2), gray, torch.ones_like(jittered))]
    steps = [(order[:, k], factors.gather(1, order[:, k : k + 1].clamp_max(2))[:, 0], hue_at, k) for k in range(4)]
    before = [(kind, factor, at > k) for kind, factor, at, k in steps]
    after = [(kind, factor, at < k) for kind, factor, at, k in steps]

    x = affine(x, [*start, *before])
    turned = shift != 0
    if bool(turned.any()):
        x[turned] = turn_hue(x[turned], shift[turned])
    return affine(x, [*after, *end])


def affine(x: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Brightness (0), contrast (1) and saturation (2) steps as one matrix a picture, clamped once at the end.

    steps: (kind [B], factor [B], taken [B]) in order. Contrast's gray mean is a linear function of the channel means.
    """
    means = x.mean((2, 3))  # [B, 3]
    matrix = torch.eye(3, 4).repeat(len(x), 1, 1)  # [B, 3, 4]
    luma = GRAY.expand(3, 3)
    for kind, factor, taken in steps:
        now = (matrix[:, :, :3] @ means[:, :, None])[:, :, 0] + matrix[:, :, 3]  # channel means so far [B, 3]
        f = factor[:, None, None]
        bright = f * matrix
        contrast = f * matrix
        contrast[:, :, 3] += (1 - factor)[:, None] * (now @ GRAY)[:, None]
        saturated = f * matrix + (1 - f) * (luma @ matrix)
        for code, new in enumerate((bright, contrast, saturated)):
            matrix = torch.where((taken & (kind == code))[:, None, None], new, matrix)
    flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], x.flatten(2))
    return flat.view_as(x).clamp_(0, 255)


def turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of HSV by `shift` turns [B]: float [B, 3, S, S] in 0 … 255, exact (not a rotation about gray)."""
    value, darkest = x.amax(1), x.amin(1)  # [B, S, S]
    chroma = value - darkest
    r, g, b = x.unbind(1)
    safe = chroma.clamp_min(1e-6)
    sector = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # in sixths of a turn
    sector = sector + 6 * shift[:, None, None]
    channels = []
    for offset in (5, 3, 1):  # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6
        k = (sector + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Separable, each picture with its own `sigma` [B] in pixels; `kernel` taps, reflected at the border."""
    radius = kernel // 2
    places = torch.arange(-radius, radius + 1)
    taps = torch.exp(-0.5 * (places / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True))[:, :, None, None, None]  # [B, kernel, 1, 1, 1]
    for dim, edges in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        wide, size = pad(x, edges, mode="reflect"), x.shape[dim]
        x = taps[:, 0] * wide.narrow(dim, 0, size)
        for tap in range(1, kernel):
            x.addcmul_(taps[:, tap], wide.narrow(dim, tap, size))
    return x


def _mix(z: np.ndarray | np.uint64) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
