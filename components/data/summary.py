"""What a person should know of the files of a data set, and of the photos that are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl
import psutil


def summarize(files: pl.DataFrame, manifest: pl.DataFrame) -> dict[str, Any]:
    """Returns counts, and widths and heights before packing.

    files: all of them, with the kind of rejection, if any. manifest: see checks.Manifest.
    """
    notes = Counter(note for photo_notes in manifest["notes"] for note in photo_notes.split("; ") if note)
    counts = manifest.group_by("label", "split").len().sort("label", "split")
    classes: dict[str, dict[str, int]] = {}
    for label, split, count in counts.drop_nulls("label").iter_rows():
        classes.setdefault(label, {})[split] = count
    multi_label = manifest.filter(pl.col("labels").list.len() > 1)
    names = multi_label.explode("labels").group_by("labels", "split").len().sort("labels", "split")
    with_others: dict[str, dict[str, int]] = {}
    for label, split, count in names.iter_rows():
        with_others.setdefault(label, {})[split] = count
    return {
        "offered": len(files),
        "used": len(manifest),
        "rejected": dict(Counter(files["kind"].drop_nulls()).most_common()),
        "splits": dict(Counter(manifest["split"]).most_common()),
        "classes": classes,
        "unlabeled": manifest.filter(pl.col("labels").list.len() == 0).height,
        "several_labels": {"photos": len(multi_label), "labels": with_others},
        "groups": manifest["group"].drop_nulls().n_unique(),
        "captioned": len(manifest) - manifest["caption"].null_count(),
        "converted": dict(notes.most_common()),
        "width": _quantiles(manifest["width"]),
        "height": _quantiles(manifest["height"]),
    }


def format_counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def class_warnings(classes: Mapping[str, Mapping[str, int]], max_imbalance: float) -> list[str]:
    """Returns warnings that name classes that cannot be learned, cannot be measured, or are far larger than others.

    classes: photos by split, by class.
    """
    train = {name: splits.get("train", 0) for name, splits in classes.items()}
    untrained = [f"{name} ({format_counts(classes[name])})" for name, count in train.items() if count == 0]
    single = [name for name, count in train.items() if count == 1]
    unmeasured = [name for name, splits in classes.items() if not splits.get("test", 0)]
    has_test = len(unmeasured) < len(classes)
    warnings = []
    if untrained:
        warnings.append(
            f"no photo in train, so that they cannot be learned: {_count_and_names(untrained, 'class', 'classes')}"
        )
    if single:
        warnings.append(f"one photo in train: {_count_and_names(single, 'class', 'classes')}")
    if unmeasured and has_test:
        warnings.append(
            f"no photo in test, so that they are not measured: {_count_and_names(unmeasured, 'class', 'classes')}"
        )
    counts = {name: count for name, count in train.items() if count}
    if counts and max(counts.values()) > max_imbalance * min(counts.values()):
        largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
        warnings.append(
            f"classes are unbalanced: {largest} has {counts[largest]} photos in train, {smallest} {counts[smallest]}; "
            f"prepare.max_imbalance is {max_imbalance:g}"
        )
    return warnings


def issue_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns lines for a terminal: how many photos have an issue of each kind, and what became of near-duplicates."""
    counts = {kind.replace("_", " "): issue["count"] for kind, issue in report["issues"].items()}
    lines = [f"photos to look at, listed in issues.csv: {format_counts(counts)}"] if counts else []
    moved, left_out = report["together"]["moved"], report["together"]["left_out"]
    if moved or left_out:
        lines.append(
            f"so that no two splits share near-duplicates or a group, {moved} photos were drawn together with others "
            f"and {left_out} left out (kind leak in rejected.jsonl)"
        )
    return lines


def error_warnings(rejected: Mapping[str, int]) -> list[str]:
    """Returns a warning if photos made code fail in a way that no damaged file should."""
    count = rejected.get("unexpected", 0)
    text = 'raised unexpected errors; this may be a bug in selfsight: see kind "unexpected" in rejected.jsonl'
    return [f"{count} {'file' if count == 1 else 'files'} {text}"] if count else []


def bit_depth_warnings(peaks: Mapping[str, int], bit_depth: int | str) -> list[str]:
    """Returns a warning if files with 16 bits a channel hold values of fewer bits, and no depth was set.

    peaks: largest value by path. The scale is one for the whole data set, since brightness means something: a single
    dark photo is not evidence, the largest value of all of them is.
    """
    if bit_depth != "auto" or not peaks:
        return []
    depths = {path: next(bits for bits in (8, 10, 12, 14, 16) if peak < 2**bits) for path, peak in peaks.items()}
    deepest, low = max(depths.values()), [path for path, bits in depths.items() if bits < 16]
    if deepest < 16:
        return [
            f"{len(peaks)} images with 16 bits a channel hold values up to {max(peaks.values())} only, as {deepest}-bit"
            f" images do: {2 ** (deepest - 8)} of 256 gray levels are left of them. Set prepare.bit_depth: {deepest}, "
            f"or 16 if they are meant to be this dark; the first: {next(iter(peaks))}"
        ]
    if len(low) > len(peaks) / 2:
        return [
            f"{len(low)} of {len(peaks)} images with 16 bits a channel hold values of fewer bits; they become darker "
            f"than the others, and if their cameras differ, they should be scaled alike first; the first: {low[0]}"
        ]
    return []


def size_warnings(packed: int, quality: int | None) -> list[str]:
    """Returns a warning if the packed photos do not fit in memory, so that every epoch reads them from disk again."""
    memory = psutil.virtual_memory().total
    if packed < memory / 2:
        return []
    advice = "a smaller data.size" if quality else "data.jpeg_quality, 95 say, or a smaller data.size"
    sizes = f"packed photos take {packed / 2**30:.0f} GiB, memory has {memory / 2**30:.0f}"
    return [f"{sizes}: every epoch will read the disk; try {advice}"]


def _count_and_names(names: Collection[str], singular: str, plural: str, limit: int = 5) -> str:
    """Returns "3 classes: a, b, c", with the first few named."""
    first = ", ".join(list(names)[:limit])
    return f"{len(names)} {singular if len(names) == 1 else plural}: {first}{' …' if len(names) > limit else ''}"


def _quantiles(column: pl.Series) -> dict[str, int | None]:
    quantiles = {"min": 0.0, "median": 0.5, "max": 1.0}
    values = {name: column.quantile(q, "nearest") for name, q in quantiles.items()}
    return {name: None if value is None else int(value) for name, value in values.items()}
