"""What a method remembers between steps: a slow copy of itself, and a queue of the past."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """A copy that follows its student by an exponential moving average of the parameters, and gets no gradient.

    Its batch-norm statistics are its own, gathered from its own batches in train mode, as in MoCo's reference code.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module: Any = deepcopy(student).requires_grad_(False)  # noqa: FBT003

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """slow = momentum · slow + (1 - momentum) · student"""
        slow: list[Tensor] = list(self.module.parameters())
        fast: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(slow, fast, 1 - momentum)


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
        places = (self.cursor + torch.arange(len(batch), device=batch.device)) % len(self.items)
        self.items[places] = batch.to(self.items.dtype)
        self.cursor.add_(len(batch)).remainder_(len(self.items))
