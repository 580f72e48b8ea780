"""What a command line entry asks of the machine before it computes."""

from __future__ import annotations

import ctypes
import os

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
