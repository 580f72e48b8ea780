"""Describes the augmented views of a method, and samples their parameters for a whole batch.

The augmentations are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize).
Each photo of a batch has its own parameters, which depend on the seed, the epoch, the photo's row in the data set and
the view alone, not on workers, ranks or restarts. A draw is a random number in [0, 1). `fused` renders the views from
the sampled parameters on a CPU, `batched` on any other device; `distortions` may change what was rendered.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.data.distortions import DISTORTION_DRAWS, Distortion, distort
from components.data.fields import BatchSource, Field
from components.data.view_params import GRAY, ViewParams

ORDERS = torch.tensor(list(itertools.permutations(range(GRAY))))  # [24, 4]: of the four color steps before GRAY
TRIES = 10  # crop proposals; if none fits, the largest centered crop is used, as in torchvision
CROP_DRAWS = 2 * TRIES + 2  # an area and an aspect ratio for each proposal, then top and left
DRAW_NAMES = (  # the draws after those of the crop
    "flip",
    "apply_jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order",
    "gray",
    "apply_blur",
    "sigma",
    "solarize",
)
DRAWS_PER_VIEW = CROP_DRAWS + len(DRAW_NAMES)


@dataclass(frozen=True)
class Jitter:
    """torchvision's ColorJitter, its four steps in random order, applied with probability p."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 0.8


@dataclass(frozen=True)
class View(Field):
    """One augmented view of each photo: uint8 [B, 3, size, size].

    size: side in pixels; crop: range of the crop's area as a fraction of the photo's; ratio: range of its aspect ratio.
    A crop of None is the whole photo; one of (1, 1) cuts photos off whose aspect ratio is outside of `ratio`.
    flip, gray, blur, solarize: probabilities; gray_first: RandomGrayscale before the jitter, as in MoCo v1.
    sigma: range of the blur's standard deviation, in pixels.
    blur_kernel: width of the blur's kernel. "full" is three standard deviations on each side, as in Pillow's
    GaussianBlur, which most papers' code uses. "tenth" is a tenth of the view, as in SimCLR and BYOL; it cuts the
    Gaussian off, so that a sigma of 2 blurs like one of 1.29 at 40 pixels and of 1.64 at 64 pixels. A number is an
    odd number of pixels, as torchvision's kernel_size.
    distort: the distortions of what was rendered, in their order.
    """

    size: int
    crop: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: Jitter | None = None
    gray: float = 0.0
    gray_first: bool = False
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | Literal["tenth", "full"] = "full"
    solarize: float = 0.0
    distort: tuple[Distortion, ...] = ()
    dtype = torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def make(self, source: BatchSource, position: int) -> Tensor:
        draws = source.uniform(position, DRAWS_PER_VIEW + (DISTORTION_DRAWS if self.distort else 0))
        rendered = source.render(sample_params(self, source.shapes, draws[:, :DRAWS_PER_VIEW]))
        return distort(rendered, self.distort, draws[:, DRAWS_PER_VIEW:])


def sample_params(view: View, shapes: Tensor, draws: Tensor) -> ViewParams:
    """Returns the parameters of one view, from the photos' `shapes` [B, 2] and their `draws` [B, DRAWS_PER_VIEW]."""
    columns = draws[:, CROP_DRAWS:].float().split(1, dim=1)
    draw = dict(zip(DRAW_NAMES, columns, strict=True))  # name -> [B, 1]
    jitter = view.jitter or Jitter(0, 0, 0, 0, p=0)
    jittered = draw["apply_jitter"] < jitter.p
    max_change = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation])
    low = (1 - max_change).clamp_min(0)
    factor_draws = torch.cat([draw["brightness"], draw["contrast"], draw["saturation"]], 1)
    factors = torch.where(jittered, low + (1 + max_change - low) * factor_draws, 1.0)
    hue_shift = torch.where(jittered, (2 * draw["hue"] - 1) * jitter.hue, 0.0)
    gray = (draw["gray"] >= view.gray).float()  # a saturation factor: 0 makes the photo gray, 1 leaves it as it is
    shuffled = ORDERS[(draw["order"][:, 0] * len(ORDERS)).long()]
    gray_step = torch.full_like(shuffled[:, :1], GRAY)
    sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draw["sigma"]
    return ViewParams(
        size=view.size,
        blur_kernel_size=blur_kernel_size(view),
        boxes=crop_boxes(shapes, view, draws[:, :CROP_DRAWS]),
        flip=draw["flip"][:, 0] < view.flip,
        order=torch.cat([gray_step, shuffled] if view.gray_first else [shuffled, gray_step], 1),
        strengths=torch.cat([factors, hue_shift, gray], 1),
        sigma=torch.where(draw["apply_blur"] < view.blur, sigma, 0.0)[:, 0],
        solarize=draw["solarize"][:, 0] < view.solarize,
    )


def blur_kernel_size(view: View) -> int:
    """Returns the width of the blur's kernel in pixels, an odd number, or 0 if the view is never blurred.

    It is at most 2 · view.size - 1, because the border is padded by reflection.
    """
    if view.blur == 0:
        return 0
    if view.blur_kernel == "full":
        size = 2 * math.ceil(3 * view.sigma[1]) + 1
    elif view.blur_kernel == "tenth":
        size = max(3, view.size // 10 | 1)
    else:
        size = view.blur_kernel
    return min(size, 2 * view.size - 1)


def crop_boxes(shapes: Tensor, view: View, draws: Tensor) -> Tensor:
    """Returns the boxes of RandomResizedCrop: top, left, height and width in pixels, int64 [B, 4].

    shapes: height and width of each photo, [B, 2]; draws: [B, CROP_DRAWS].
    """
    if view.crop is None:
        return torch.cat([torch.zeros_like(shapes), shapes], 1)
    areas, ratios, top_draw, left_draw = draws.split([TRIES, TRIES, 1, 1], dim=1)
    height, width = shapes[:, :1].double(), shapes[:, 1:].double()
    area = height * width * (view.crop[0] + (view.crop[1] - view.crop[0]) * areas)
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio = torch.exp(low + (high - low) * ratios)
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()  # of all proposals, [B, TRIES]
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first_fit = fits.int().argmax(1, keepdim=True)
    photo_ratio = width / height  # if no proposal fits: the largest centered box within the range of ratios
    fallback_w = torch.where(photo_ratio > view.ratio[1], (height * view.ratio[1]).round(), width)
    fallback_h = torch.where(photo_ratio < view.ratio[0], (width / view.ratio[0]).round(), height)
    any_fits = fits.any(1, keepdim=True)
    h = torch.where(any_fits, h.gather(1, first_fit), fallback_h)
    w = torch.where(any_fits, w.gather(1, first_fit), fallback_w)
    top = torch.where(any_fits, (top_draw * (height - h + 1)).floor(), ((height - h) / 2).floor())
    left = torch.where(any_fits, (left_draw * (width - w + 1)).floor(), ((width - w) / 2).floor())
    return torch.cat([top, left, h, w], 1).long()
