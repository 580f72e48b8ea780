"""Compiles Python loops for this machine's processor, with numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(*, fastmath: bool | set[str], parallel: bool = False) -> Callable[[Any], Any]:
    """Returns a decorator that compiles a function at its first call and, if possible, caches the result on disk.

    The compiled function releases the interpreter's lock, so that it runs in parallel with other threads.
    fastmath: numba's; {"contract"} allows only that a product and a sum are rounded once.
    parallel: whether the iterations of `prange` are divided among numba.get_num_threads() threads.
    """
    options: Any = {"nogil": True, "fastmath": fastmath, "error_model": "numpy", "parallel": parallel}

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function"
            return njit(**options)(function)

    return decorate
