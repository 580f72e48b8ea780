"""What a machine is, and the most it can."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.models import winograd


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


def operations(step: Callable[[], Tensor]) -> int:
    """Of one forward and backward, as torch's plain operators do them: what is compiled or fused is not counted, and
    Winograd's filtering is the same work by fewer operations.
    """
    eager = torch.compiler.set_stance("force_eager")
    direct = mock.patch.object(winograd, "applies", return_value=False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), eager, direct:
        step().backward()
    return counter.get_total_flops()


def processor() -> str:
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(text.partition(":")[2].strip() for text in said if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
