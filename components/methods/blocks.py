"""Block masks: connected blocks of patches are masked, so that a masked patch cannot be copied from its neighbor.

Bao et al., BEiT, ICLR 2022, algorithm 1 (https://arxiv.org/abs/2106.08254), with iBOT's numbers (ibot/loader.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRIES = 24  # blocks proposed for each mask; the official code stops when ten in a row do not fit
DRAWS_PER_MASK = 2 + 4 * TRIES  # whether and how much, then area, aspect ratio, top and left of each block
ASPECT = 0.3  # height / width is between 0.3 and 1 / 0.3


def block_masks(draws: Tensor, side: int, probability: float, ratio: tuple[float, float]) -> Tensor:
    """Returns which patches of a grid of side² are masked: bool [B, side²], from draws [B, DRAWS_PER_MASK] in [0, 1).

    A photo is masked with `probability`. The masked fraction of its patches is at most a number drawn uniformly from
    `ratio`: blocks of random area and aspect ratio are added as long as they mask a new patch and do not exceed it.
    """
    apply_draw, ratio_draw, block_draws = draws.split([1, 1, 4 * TRIES], dim=1)
    fraction = ratio[0] + (ratio[1] - ratio[0]) * ratio_draw[:, 0]
    remaining = torch.where(apply_draw[:, 0] < probability, fraction * side**2, 0.0)  # [B], patches still to be masked
    masked = torch.zeros(len(draws), side, side, dtype=torch.bool, device=draws.device)
    index = torch.arange(side, device=draws.device)
    smallest = float((side // 3) ** 2)
    for area_draw, aspect_draw, top_draw, left_draw in block_draws.unflatten(1, (TRIES, 4)).permute(1, 2, 0):
        area = (smallest + (remaining - smallest) * area_draw).clamp_min(0)
        aspect = torch.exp((2 * aspect_draw - 1) * math.log(1 / ASPECT))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top, left = (top_draw * (side - height + 1)).floor(), (left_draw * (side - width + 1)).floor()
        rows = (index >= top[:, None]) & (index < (top + height)[:, None])  # [B, side]
        columns = (index >= left[:, None]) & (index < (left + width)[:, None])
        new_patches = rows[:, :, None] & columns[:, None, :] & ~masked
        num_new = new_patches.sum((1, 2))
        fits = (height < side) & (width < side) & (num_new > 0) & (num_new <= remaining)
        masked |= new_patches & fits[:, None, None]
        remaining = remaining - torch.where(fits, num_new, 0)
    return masked.flatten(1)
