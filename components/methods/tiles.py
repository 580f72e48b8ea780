"""Losses over matrices that are too large for memory, computed with their gradients one tile of rows at a time.

The gradient of a tile is computed in the forward pass while the tile is in memory; the backward pass only scales it.
Beside inputs and gradients, this needs memory for one tile; autograd would keep several copies of the whole matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 1024  # of a tile


class NTXent(torch.autograd.Function):
    """Cross-entropy of each row of `local` [M, D] with its other view among all rows of `gathered` [E, D]: mean, [].

    Rows have length 1; local is gathered[offset : offset + M], and the other view is M / 2 rows away, cyclically.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, gathered: Tensor, offset: int, temperature: float) -> Tensor:
        count = len(local)
        local_grad, gathered_grad = torch.empty_like(local), torch.zeros_like(gathered)
        loss = local.new_zeros(())
        for start in range(0, count, ROWS):
            tile = local[start : start + ROWS]
            row = torch.arange(len(tile), device=local.device)
            logits = tile @ gathered.T / temperature  # [R, E]
            logits.diagonal(offset + start).fill_(-torch.inf)  # not itself; an indexed write would wait for the GPU
            other_view = offset + (start + row + count // 2) % count
            log_sum = logits.logsumexp(1)
            loss += (log_sum - logits[row, other_view]).sum()
            logits_grad = logits.sub_(log_sum[:, None]).exp_()  # softmax, less 1 at the other view
            logits_grad[row, other_view] -= 1
            local_grad[start : start + ROWS] = logits_grad @ gathered
            gathered_grad.addmm_(logits_grad.T, tile)
        scale = 1 / (temperature * count)
        ctx.save_for_backward(local_grad.mul_(scale), gathered_grad.mul_(scale))
        return loss / count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        local_grad, gathered_grad = ctx.saved_tensors
        return upstream * local_grad, upstream * gathered_grad, None, None


class AcrossViews(torch.autograd.Function):
    """Cross-entropy between each of targets [T, B, K] and each other view of logits [V, B, K] / temperature: []."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        num_views, batch_size = logits.shape[:2]
        num_pairs = len(targets) * (num_views - 1)
        target_sum = targets.sum(0)  # [B, K]
        gradient, loss = torch.empty_like(logits), targets.new_zeros(())
        for view in range(num_views):
            other_targets = target_sum - targets[view] if view < len(targets) else target_sum
            weight = other_targets.sum(-1, keepdim=True)  # the number of targets, as each sums to 1
            z = logits[view].to(targets.dtype) / temperature
            log_sum = z.logsumexp(-1, keepdim=True)
            loss += (weight * log_sum).sum() - (other_targets * z).sum()
            logits_grad = z.sub_(log_sum).exp_().mul_(weight).sub_(other_targets)
            gradient[view] = logits_grad / (temperature * num_pairs * batch_size)
        ctx.save_for_backward(gradient)
        return loss / (num_pairs * batch_size)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, upstream * ctx.saved_tensors[0], None
