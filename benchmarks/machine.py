"""Describes the machine and measures its fastest matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.measurement import processor
from components.models import winograd


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the operations a second of torch's matrix product, the best of six."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        before = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - before)
    return 2 * side**3 / best


def operations(step: Callable[[], Tensor]) -> int:
    """Returns the operations of one forward and backward pass, counted as torch's plain operators compute them.

    The counter does not see compiled or fused operators, and Winograd's filtering does the same work with fewer.
    """
    stance = torch.compiler.set_stance("force_eager")
    without_winograd = mock.patch.object(winograd, "applies", return_value=False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), stance, without_winograd:
        step().backward()
    return counter.get_total_flops()


def chip() -> str:
    """Returns the CPU's name and the largest of its instruction sets that matter here, as "AMD EPYC (AVX2)"."""
    name, flags = processor()
    units = [flag.upper() for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if flag in flags]
    return f"{name} ({', '.join(units[-2:])})" if units else name
