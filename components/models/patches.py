"""Cuts images into squares, and removes cues from them that would make a task too easy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 3  # squares along each side of a grid
RMS = 50.0  # of a contrast-normalized patch, in units of pixels 0 … 255 (Doersch's train.py)


def cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] and corners [B, P, 2] (top, left) -> squares [B, P, 3, size, size]."""
    span = torch.arange(size, device=images.device)
    rows, columns = (corners[:, :, axis, None] + span for axis in (0, 1))  # [B, P, size]
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images.permute(0, 2, 3, 1)[image, rows[:, :, :, None], columns[:, :, None, :]].permute(0, 1, 4, 2, 3)


def grid(images: Tensor, size: int) -> Tensor:
    """Returns 3 × 3 squares, spread evenly over the image, row by row: [B, 3, H, W] -> [B, 9, 3, size, size]."""
    height, width = images.shape[-2:]
    tops, lefts = ([k * (side - size) // (SIDE - 1) for k in range(SIDE)] for side in (height, width))
    assert size <= min(height, width)
    return torch.stack([images[:, :, top : top + size, left : left + size] for top in tops for left in lefts], 1)


def resamplers(size: int, smallest: int) -> Tensor:
    """Returns matrices that resize to `smallest` … `size` pixels and back: [size - smallest + 1, size, size].

    R @ square @ Rᵀ is the square resampled, bilinear with antialiasing; the last one is the identity.
    """
    columns = torch.eye(size)[None, None]
    shrunk = (interpolate(columns, (side, size), mode="bilinear", antialias=True) for side in range(smallest, size + 1))
    return torch.stack([interpolate(x, (size, size), mode="bilinear")[0, 0] for x in shrunk])


def standardized(squares: Tensor) -> Tensor:
    """Returns squares whose channels have mean 0 and deviation 1 (0 if constant): [..., S, S] -> same."""
    centered = squares - squares.mean((-2, -1), keepdim=True)
    return centered / centered.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(0.1)


def without_aberration(squares: Tensor, color: Literal["dropping", "projection", "none"], draws: Tensor) -> Tensor:
    """Removes chromatic aberration as a cue: centered squares [M, 3, S, S], draws [M, 2] -> same shape.

    dropping: one channel stays, the others become noise in ±0.5; projection: removes the component along the axis from
    green to magenta, as a lens shifts these colors against each other.
    Doersch et al., 2015, section 3.1.
    """
    if color == "none":
        return squares
    if color == "projection":
        red, green, blue = squares.unbind(1)
        projection = (2 * green - red - blue) / 6  # in units of the axis (-1, 2, -1), from magenta to green
        return torch.stack([red + projection, green - 2 * projection, blue + projection], 1)
    keep = (draws[:, 0] * 3).long()[:, None] == torch.arange(3, device=squares.device)  # [M, 3]
    noise = hashed(draws[:, 1], squares[0].numel()).to(squares.dtype).view_as(squares) - 0.5
    return torch.where(keep[:, :, None, None], squares, noise)


def hashed(seeds: Tensor, count: int) -> Tensor:
    """Returns noise in [0, 1) from each seed (in [0, 1), [M]) alone, on any device: float32 [M, count].

    Wellons' lowbias32 of the position, keyed by the seed (https://nullprogram.com/blog/2018/07/31/).
    """
    key = _mix((seeds.double() * 2**32).long())[:, None]
    return (_mix(key ^ _mix(torch.arange(1, count + 1, device=seeds.device))) >> 8).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
