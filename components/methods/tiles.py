"""Losses over tables that are too large to keep: a tile at a time, and its gradient with it.

What a tile's loss needs of its gradient is at hand while the tile is, so it is taken then, and the backward pass only
scales it. Memory is one tile beside inputs and gradients, where autograd would keep the whole table several times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 1024  # of a tile


class NTXent(torch.autograd.Function):
    """Cross-entropy of each row of `mine` [M, D] with its other view among all rows of `everyone` [E, D], the mean: [].

    Rows are unit vectors; mine is everyone[offset : offset + M], its other view M / 2 rows away, cyclically.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, everyone: Tensor, offset: int, temperature: float) -> Tensor:
        count = len(mine)
        grad_mine, grad_everyone = torch.empty_like(mine), torch.zeros_like(everyone)
        loss = mine.new_zeros(())
        for start in range(0, count, ROWS):
            part = mine[start : start + ROWS]
            row = torch.arange(len(part), device=mine.device)
            logits = part @ everyone.T / temperature  # [R, E]
            logits.diagonal(offset + start).fill_(-torch.inf)  # not itself; a number put at places would be waited for
            other = offset + (start + row + count // 2) % count
            most = logits.logsumexp(1)
            loss += (most - logits[row, other]).sum()
            share = logits.sub_(most[:, None]).exp_()  # softmax
            share[row, other] -= 1
            grad_mine[start : start + ROWS] = share @ everyone
            grad_everyone.addmm_(share.T, part)
        scale = 1 / (temperature * count)
        ctx.save_for_backward(grad_mine.mul_(scale), grad_everyone.mul_(scale))
        return loss / count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        mine, everyone = ctx.saved_tensors
        return upstream * mine, upstream * everyone, None, None


class AcrossViews(torch.autograd.Function):
    """Cross-entropy between each of targets [T, B, K] and each other view of logits [V, B, K] / temperature: []."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        views, pictures = logits.shape[:2]
        terms = len(targets) * (views - 1)
        whole = targets.sum(0)  # [B, K]
        gradient, loss = torch.empty_like(logits), targets.new_zeros(())
        for view in range(views):
            wanted = whole - targets[view] if view < len(targets) else whole
            weight = wanted.sum(-1, keepdim=True)  # how many targets, as each sums to 1
            z = logits[view].to(targets.dtype) / temperature
            most = z.logsumexp(-1, keepdim=True)
            loss += (weight * most).sum() - (wanted * z).sum()
            share = z.sub_(most).exp_().mul_(weight).sub_(wanted)
            gradient[view] = share / (temperature * terms * pictures)
        ctx.save_for_backward(gradient)
        return loss / (terms * pictures)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, upstream * ctx.saved_tensors[0], None
