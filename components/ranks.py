"""Exchange of tensors between processes. With one process every function here is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """all_gather; backward sums over ranks the gradients of this rank's rows, which DDP's mean makes exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, rank() * ctx.rows, ctx.rows)


def gather(x: Tensor) -> Tensor:
    """Returns the rows of all ranks, [W·B, …] from [B, …] on each of W ranks, in rank order, with exact gradients."""
    return x if world_size() == 1 else _Gather.apply(x)


def total(x: Tensor) -> Tensor:
    """Returns the sum of x over the ranks, without gradient. x has the same shape on all of them."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x
