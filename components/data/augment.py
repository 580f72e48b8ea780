"""A method says in words how a picture is looked at; here the words become numbers, and the numbers views.

The definitions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize),
except that each picture of a batch draws its own parameters, and that they depend on (seed, epoch, row, view) alone:
not on workers, ranks or restarts. One `decide` draws; two renderers carry out: `fused` on the CPU, `batched` in torch
on any device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from components.data import batched, fused
from components.data.luck import uniform
from components.data.photos import Photos

ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # of brightness, contrast, saturation, hue
GRAY = 4  # the fifth step: saturation 0 or 1
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


@dataclass(frozen=True)
class Plan:
    """What is to be done with each of B pictures to get one view of size × size pixels.

    Steps of color: 0 brightness, 1 contrast, 2 saturation, 3 hue, 4 gray. A strength is a factor, of hue a shift in
    turns; where a step is not taken it is 1, or 0 turns.
    """

    size: int
    taps: int  # of the blur, 0 where none is ever blurred
    boxes: Tensor  # int64 [B, 4]: top, left, height, width
    flip: Tensor  # bool [B]
    order: Tensor  # int64 [B, 5]
    strengths: Tensor  # float32 [B, 5], by step, not by order
    sigma: Tensor  # float32 [B], 0 where nothing is blurred
    solarize: Tensor  # bool [B]


def look(
    photos: Photos,
    rows: np.ndarray,
    views: Sequence[View | Draws | Labels],
    seed: int,
    epoch: int,
    device: torch.device | None = None,
) -> list[Tensor]:
    """For each View uint8 [B, 3, size, size], for each Draws float32 [B, count], for Labels int64 [B]; B: len(rows).

    device: where they are wanted; views for a GPU are made there.
    """
    there = device or torch.device("cpu")
    shapes = torch.from_numpy(photos.shapes[rows])
    if there.type == "cpu":
        render = partial(fused.render, photos.pixels(rows))
    else:
        render = partial(batched.render, photos.stack(rows, there))
    found = []
    for i, view in enumerate(views):
        if isinstance(view, Draws):
            # never rounded to 1
            made = uniform(seed, epoch, rows, i, view.count).float().clamp_max_(1 - 2**-24)
        elif isinstance(view, Labels):
            made = photos.labels(rows)
        else:
            plan = decide(view, shapes, uniform(seed, epoch, rows, i, NEEDED))
            made = render(plan)
        found.append(made.to(there, non_blocking=True))
    return found


def decide(view: View, shapes: Tensor, draws: Tensor) -> Plan:
    """The parameters of one view of each picture, from the pictures' `shapes` [B, 2] and their `draws` [B, NEEDED]."""
    crop, rest = draws[:, : 2 * TRIES + 2], draws[:, 2 * TRIES + 2 :].float()
    jitter = view.jitter or Jitter(0, 0, 0, 0, p=0)
    jittered = rest[:, 1:2] < jitter.p
    reach = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation])
    low = (1 - reach).clamp_min(0)
    factors = torch.where(jittered, low + (1 + reach - low) * rest[:, 2:5], 1.0)
    shift = torch.where(jittered, (2 * rest[:, 5:6] - 1) * jitter.hue, 0.0)
    gray = (rest[:, 7:8] >= view.gray).float()
    shuffled = ORDERS[(rest[:, 6] * len(ORDERS)).long()]
    last = torch.full_like(shuffled[:, :1], GRAY)
    return Plan(
        size=view.size,
        taps=max(3, view.size // 10 | 1) if view.blur > 0 else 0,
        boxes=crop_boxes(shapes, view, crop),
        flip=rest[:, 0] < view.flip,
        order=torch.cat([last, shuffled] if view.gray_first else [shuffled, last], 1),
        strengths=torch.cat([factors, shift, gray], 1),
        sigma=torch.where(rest[:, 8] < view.blur, view.sigma[0] + (view.sigma[1] - view.sigma[0]) * rest[:, 9], 0.0),
        solarize=rest[:, 10] < view.solarize,
    )


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
