"""Distorts rendered views by augmentations that SimCLR's study compares and its recipe leaves out.

Chen et al., ICML 2020 (https://arxiv.org/abs/2002.05709), section 3.1, figures 4 and 5: Sobel filtering, cutout,
rotation and Gaussian noise. The study crops both views of a pair and distorts one of them; it states neither
probabilities nor strengths, and the official code has none of the four.

Each function takes uint8 images [B, 3, S, S] on any device and draws in [0, 1), float64 [B, 2] on the CPU, and returns
new images. A photo's bits depend on its own pixels and draws alone: nothing is summed whose order could matter, and no
function is called whose rounding may differ between the places of a batch (log, cos).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.data.randomness import hash_bits

Distortion = Literal["sobel", "cutout", "rotate", "noise"]
# Of being applied to a view. With 1/2, as SimCLR's blur has, half of all pairs are like the study's: one view is
# distorted, the other is not. Each number of quarter turns, 0 too, has 1/4.
PROBABILITY: dict[Distortion, float] = {"sobel": 0.5, "cutout": 0.5, "rotate": 0.75, "noise": 0.5}
DRAWS_EACH = 3  # whether it is applied, and two for its parameters
DISTORTION_DRAWS = DRAWS_EACH * len(PROBABILITY)
FILL = 128  # about the mean of photos
# From the weakest to the strongest noise of Tiny ImageNet-C (Hendrycks & Dietterich, ICLR 2019,
# https://arxiv.org/abs/1903.12261, make_tinyimagenet_c.py), whose photos have 64 pixels.
SIGMA = (0.04 * 255, 0.18 * 255)


def distort(images: Tensor, names: Sequence[Distortion], draws: Tensor) -> Tensor:
    """Returns uint8 [B, 3, S, S], `images` distorted in the order of `names`, each with its probability.

    draws: float64 [B, DISTORTION_DRAWS] on the CPU. Each distortion has its own, whichever others are applied.
    """
    for name in names:
        first = DRAWS_EACH * get_args(Distortion).index(name)
        indices = (draws[:, first] < PROBABILITY[name]).nonzero()[:, 0]
        rows = indices.to(images.device, non_blocking=True)
        distorted = FUNCTIONS[name](images.index_select(0, rows), draws[indices, first + 1 : first + DRAWS_EACH])
        images = images.index_copy(0, rows, distorted)
    return images


def sobel(images: Tensor, draws: Tensor) -> Tensor:  # noqa: ARG001
    """Returns the length of each channel's gradient, by Sobel's filters.

    The border is reflected, as by tf.image.sobel_edges. Divided by 4, an edge is as bright as the step that it shows.
    """
    padded = pad(images.float(), (1, 1, 1, 1), mode="reflect")
    dx, dy = padded[..., 2:] - padded[..., :-2], padded[..., 2:, :] - padded[..., :-2, :]
    x = dx[..., :-2, :] + 2 * dx[..., 1:-1, :] + dx[..., 2:, :]
    y = dy[..., :-2] + 2 * dy[..., 1:-1] + dy[..., 2:]
    return (x.square_().add_(y.square_()).sqrt_() / 4).round_().clamp_max_(255).to(torch.uint8)


def cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Fills a square of half the side, whose center is any pixel: at the border a part of it lies outside.

    DeVries & Taylor, 2017 (https://arxiv.org/abs/1708.04552), section 3.2; half the side is its size for
    CIFAR-10. The paper fills with 0 after normalization, which is the mean.
    """
    size = images.shape[-1]
    centers = (draws * size).long().to(images.device, non_blocking=True)  # [B, 2]: row and column
    distance = torch.arange(size, device=images.device) - centers[:, :, None]  # [B, 2, S]
    in_square = (distance >= -(size // 4)) & (distance < size // 4)
    return images.masked_fill((in_square[:, 0, :, None] & in_square[:, 1, None, :])[:, None], FILL)


def rotate(images: Tensor, draws: Tensor) -> Tensor:
    """Rotates each photo counterclockwise by 90, 180 or 270 degrees, each equally often."""
    turns = (draws[:, 0] * 3).long().to(images.device, non_blocking=True)
    size = images.shape[-1]
    pixels = torch.arange(size**2, device=images.device).view(size, size)
    sources = torch.stack([pixels.rot90(quarters) for quarters in (1, 2, 3)]).flatten(1)  # [3, S²]
    sources = sources.index_select(0, turns)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, sources).view(images.shape)


def noise(images: Tensor, draws: Tensor) -> Tensor:
    """Adds Gaussian noise, independent in each pixel and channel; its standard deviation is uniform within SIGMA."""
    sigma = (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[:, 0]).float().to(images.device, non_blocking=True)
    seeds = (draws[:, 1] * 2**53).long().to(images.device, non_blocking=True)
    num_values = prod(images.shape[1:])
    bits = hash_bits(seeds, -(-num_values // 4)).view(torch.int16)  # four values of 16 bits from each hash
    bits = bits[:, :num_values]
    numbers = (bits.int() & 2**16 - 1).flatten()  # index_select is faster than [] here
    samples = _quantiles(images.device).index_select(0, numbers).view(bits.shape).mul_(sigma[:, None])
    return samples.view(images.shape).add_(images).round_().clamp_(0, 255).to(torch.uint8)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Returns the 2**16 quantiles of the normal distribution: one for each value of 16 random bits."""
    fractions = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(fractions).float().to(device, non_blocking=True)


FUNCTIONS = {"sobel": sobel, "cutout": cutout, "rotate": rotate, "noise": noise}
