"""A person sees a bar, a log file a line every ten seconds."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], name: str, total: int | None = None, unit: str = "it", *, shown: bool = True
) -> "tqdm[T]":
    """`items`, with rate and time left on stderr."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(items, name, total, disable=not shown, unit=unit, mininterval=interval, maxinterval=interval)
