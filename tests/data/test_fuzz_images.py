"""Damaged files of every format are read or rejected by name; `python -m benchmarks.fuzz_images` tries more of them."""

from collections import Counter

from benchmarks.fuzz_images import RULES, damaged, read_damaged, samples
from components.data.images import FORMATS, pillow_limit


def test_damaged_files_are_read_or_rejected():
    kinds: dict[str, Counter[str]] = {}
    with pillow_limit(RULES.max_pixels):
        for index in range(8 * len(samples())):
            name, kind, why = read_damaged(1, index)
            assert kind not in ("unexpected", "unreadable"), f"file {index}: {why}"
            kinds.setdefault(name, Counter())[kind] += 1
    assert set(kinds) >= {*FORMATS, "HEIF", "ICO", "TGA"}
    counts = sum(kinds.values(), Counter())
    assert 0.05 < counts["read"] / counts.total() < 0.6


def test_a_file_is_damaged_alike_every_time():
    assert damaged(3, 5) == damaged(3, 5) != damaged(4, 5)
