"""State that a method keeps between steps: a moving average of its weights, a queue of keys, a center of outputs."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from components import ranks


class EMA(nn.Module):
    """An exponential moving average of a student's parameters, without gradients.

    Its batch-norm statistics are not averaged: in train mode it gathers them from its own batches, as in MoCo's code.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module: Any = deepcopy(student).requires_grad_(False)  # noqa: FBT003

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """average = momentum · average + (1 - momentum) · student, for every parameter"""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(averages, weights, 1 - momentum)


class Queue(nn.Module):
    """A ring of the last `length` unit vectors, oldest out first; a batch may wrap around its end.

    items   [length, dim]  starts as normalized random normals (MoCo, builder.py)
    cursor  []             where the next batch goes
    """

    items: Tensor
    cursor: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("items", nn.functional.normalize(torch.randn(length, dim), dim=-1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, batch: Tensor) -> None:
        """batch: [B, dim], B at most `length`."""
        positions = (self.cursor + torch.arange(len(batch), device=batch.device)) % len(self.items)
        self.items[positions] = batch.to(self.items.dtype)
        self.cursor.add_(len(batch)).remainder_(len(self.items))


class Center(nn.Module):
    """A moving mean of vectors, over all ranks and all micro-batches of a batch: DINO's center.

    mean  [dim]  updated by `update`, once per optimizer step, after the losses that read it (dino/main_dino.py)
    """

    mean: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.momentum = momentum
        self._sums: list[Tensor] = []  # of this step, each [dim + 1]: a sum of vectors, and their number

    @torch.no_grad()
    def record(self, x: Tensor) -> None:
        """Adds vectors x [B, dim], any B, to those of the next `update`."""
        x = x.to(self.mean.dtype)
        self._sums.append(torch.cat([x.sum(0), x.new_full((1,), len(x))]))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean. Every rank must call it, also one that recorded nothing."""
        total = ranks.total(torch.stack(self._sums).sum(0))
        self._sums.clear()
        has_rows = total[-1] > 0  # a tensor, so that nothing waits for the GPU
        self.mean.lerp_(total[:-1] / total[-1].clamp_min(1), (1 - self.momentum) * has_rows.to(self.mean.dtype))


class RunningMean(Center):
    """A Center that is not biased toward its start at zero: `value` is the mean from the first update on.

    mean  [dim + 1]  of the vectors, and of the number 1, by which `value` divides
    """

    def __init__(self, dim: int, momentum: float = 0.99) -> None:
        super().__init__(dim + 1, momentum)

    @property
    def value(self) -> Tensor:
        """[dim]; 0 before the first update."""
        return self.mean[:-1] / self.mean[-1].clamp_min(torch.finfo(self.mean.dtype).tiny)

    @torch.no_grad()
    def record(self, x: Tensor) -> None:
        super().record(torch.cat([x, x.new_ones(len(x), 1)], dim=1))
