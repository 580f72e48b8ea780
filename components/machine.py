"""What the machine can do, and what a command line entry asks of it before it computes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
SYSTEM_MALLOC = "SELFSIGHT_SYSTEM_MALLOC"  # set to anything: the C library frees memory as it likes
TOP_PAD, TRIM_THRESHOLD, MMAP_THRESHOLD = -2, -1, -3  # of malloc.h


def keep_memory() -> bool:
    """Have glibc keep freed blocks: it gives large ones back and asks for them again at every step, page by page.

    Whether that was possible: not on other C libraries, nor where SELFSIGHT_SYSTEM_MALLOC is set.
    """
    if SYSTEM_MALLOC in os.environ:
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        return False
    return all(tune(what, to) for what, to in ((TOP_PAD, 2**28), (TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, 2**30)))


def has_bf16() -> bool:
    """Emulated bf16 is hundreds of times slower than fp32, so ask for units that multiply in it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return "amx_bf16" in CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
