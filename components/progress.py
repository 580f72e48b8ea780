"""Progress bars: in a terminal updated twice a second, otherwise a line every ten seconds."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], name: str, total: int | None = None, unit: str = "it", *, visible: bool = True
) -> "tqdm[T]":
    """Returns an iterator over `items` that shows rate and time left on stderr, unless `visible` is False."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(items, name, total, disable=not visible, unit=unit, mininterval=interval, maxinterval=interval)
