"""The studies of the history, by name, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.history import augmentations, collapse, heads, ladder, photos, queue, shortcuts
from benchmarks.history.runner import Runner
from benchmarks.history.section import Section

STUDIES: dict[str, Callable[[Runner], Section]] = {
    "ladder": ladder.study,
    "augmentations": augmentations.study,
    "heads": heads.study,
    "queue": queue.study,
    "collapse": collapse.study,
    "shortcuts": shortcuts.study,
    "photos": photos.study,
}
