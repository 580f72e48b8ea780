"""Masks of connected blocks, so that what is hidden cannot be copied from the patch beside it.

Bao et al., BEiT, ICLR 2022, algorithm 1 (https://arxiv.org/abs/2106.08254), as iBOT draws them (ibot/loader.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRIES = 24  # blocks proposed a picture; the reference goes on until ten in a row did not fit
DRAWS_PER_MASK = 2 + 4 * TRIES  # numbers a mask takes
ASPECT = 0.3  # sides of a block from 0.3 to 1 / 0.3


def block_masks(draws: Tensor, side: int, probability: float, ratio: tuple[float, float]) -> Tensor:
    """What is hidden of a grid of side² patches: bool [B, side²], from draws [B, NEEDED] in [0, 1).

    With `probability` a picture is masked at all, then up to a share of its patches that is uniform in `ratio`: blocks
    of random area and aspect are laid down as long as they add something and do not exceed it.
    """
    chosen, share = draws[:, 0] < probability, ratio[0] + (ratio[1] - ratio[0]) * draws[:, 1]
    left = torch.where(chosen, share * side**2, 0.0)  # [B], patches still to hide
    hidden = torch.zeros(len(draws), side, side, dtype=torch.bool, device=draws.device)
    place = torch.arange(side, device=draws.device)
    smallest = float((side // 3) ** 2)
    for area, aspect, down, right in draws[:, 2:].unflatten(1, (TRIES, 4)).permute(1, 2, 0):
        wanted = smallest + (left - smallest) * area
        shape = torch.exp((2 * aspect - 1) * math.log(1 / ASPECT))
        height, width = (wanted.clamp_min(0) * shape).sqrt().round(), (wanted.clamp_min(0) / shape).sqrt().round()
        top, start = (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor()
        rows = (place >= top[:, None]) & (place < (top + height)[:, None])  # [B, side]
        columns = (place >= start[:, None]) & (place < (start + width)[:, None])
        block = rows[:, :, None] & columns[:, None, :] & ~hidden  # what it adds
        adds = block.sum((1, 2))
        fits = (height < side) & (width < side) & (adds > 0) & (adds <= left)
        hidden |= block & fits[:, None, None]
        left = left - torch.where(fits, adds, 0)
    return hidden.flatten(1)
