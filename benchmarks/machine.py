"""What a machine is, and the most it can."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of its own matrix product: the best of a few."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        before = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - before)
    return 2 * side**3 / best


def processor() -> str:
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(text.partition(":")[2].strip() for text in said if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
