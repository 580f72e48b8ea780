"""Loads the next batch in a thread while the current one is trained on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from components.training.monitor import Monitor


def prefetch(load: Callable[[int], Any], steps: range, device: torch.device, monitor: Monitor) -> Generator[Any]:
    """Yields the batch of each step, on `device`; the monitor measures how long each was waited for."""
    if not steps:
        return
    with ThreadPoolExecutor(1, "prefetch", initializer=set_thread_device, initargs=(device,)) as pool:
        pending = pool.submit(load, steps.start)
        for step in steps:
            with monitor.waiting(), record_function("wait for data"):
                batch = move(pending.result(), device)
            if step != steps.start and step + 1 in steps:
                pending = pool.submit(load, step + 1)
            yield batch
            # Do not render views while the backward pass compiles, in the first step.
            if step == steps.start and step + 1 in steps:
                pending = pool.submit(load, step + 1)


def set_thread_device(device: torch.device) -> None:
    """Make this rank's GPU the current one of a new thread; otherwise the thread uses the first GPU."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def move(batch: Any, device: torch.device) -> Any:
    """Returns the batch with all its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    return batch
