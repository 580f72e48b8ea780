"""Loops in Python, compiled for the processor at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(*, fastmath: bool | set[str], parallel: bool = False) -> Callable[[Any], Any]:
    """Compiled at its first call, and kept on disk where a place for that can be written to. Runs beside other threads.

    fastmath: what LLVM may assume of numbers; {"contract"} is a product and a sum rounded once, and nothing else.
    parallel: whether `prange` shares its rounds among threads, of which there are numba.get_num_threads().
    """
    options: Any = {"nogil": True, "fastmath": fastmath, "error_model": "numpy", "parallel": parallel}

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function"
            return njit(**options)(function)

    return decorate
