"""Gradients of a batch that is computed in several micro-batches, one after the other (gradient accumulation)."""

from __future__ import annotations

import contextlib
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function


def backward(wrapped: Any, batch: Any, count: int, acc: Accelerator) -> dict[str, Tensor]:
    """Compute the gradients of the mean loss over `count` micro-batches. Returns the means of all losses, detached.

    wrapped: the objective as accelerate prepared it; its ranks exchange gradients in the last micro-batch only.
    """
    means: dict[str, Tensor] = {}
    for index, micro_batch in enumerate(split(batch, count)):
        with contextlib.nullcontext() if index == count - 1 else acc.no_sync(wrapped):
            with record_function("forward"):
                losses = wrapped(micro_batch)
            with record_function("backward"):
                acc.backward(losses["loss"] / count)
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value.detach() / count
    return means


def split(batch: Any, count: int) -> list[Any]:
    """Returns `count` equal micro-batches: each tensor of the batch is cut along its first axis.

    Raises ValueError if the batch is not a multiple of `count`.
    """
    if count == 1:
        return [batch]
    if isinstance(batch, Tensor):
        if len(batch) % count:
            raise ValueError(f"a batch of {len(batch)} per process cannot be split into {count} equal micro-batches")
        return list(batch.chunk(count))
    if isinstance(batch, dict):
        return [dict(zip(batch, values, strict=True)) for values in split(list(batch.values()), count)]
    return [list(values) for values in zip(*(split(value, count) for value in batch), strict=True)]
