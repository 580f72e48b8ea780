"""Stage: reads the photos of a data source, and writes their pixels in one file and a validated table of them.

The table is called the manifest, and the file of pixels the packed photos (pixels.bin).
"""

from __future__ import annotations

import itertools
import json
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from PIL import Image
from pydantic import Field

from components.config import Fraction, Seed, Strict, read_section, write_config
from components.data import images, sources, summary
from components.data.checks import CheckConfig, Manifest, files_schema, validate
from components.data.entries import BadRow, Entry, Source
from components.data.images import Rejected
from components.data.intake import Intake, ReadPhoto
from components.data.issues import count_issues, issue_table
from components.data.near_duplicates import sign
from components.data.photos import jpeg, write_index
from components.data.quality import measure
from components.data.splits import SPLIT_ORDER
from components.data.truth import write_truths
from components.progress import progress
from components.stages.exit_code import exit_code

MAX_PENDING = 64  # photos that are being decoded, or are decoded and not yet written

T = TypeVar("T")
R = TypeVar("R")


class DataConfig(Strict):
    """jpeg_quality: packs photos as JPEGs of this quality, if raw pixels take too much memory; None: raw pixels."""

    source: str
    size: int = Field(ge=8)
    max_rejected: Fraction = 0.1
    jpeg_quality: int | None = Field(None, ge=1, le=100)


class PrepareConfig(CheckConfig):
    """count: number of images that the source `scenes` generates.

    val_share, test_share: fraction of the photos drawn for a split that the source does not have.
    near_duplicates: find photos that are nearly the same, and keep them out of different splits.
    """

    count: int = Field(8000, ge=10)
    val_share: float = Field(0.1, ge=0, lt=0.5)
    test_share: float = Field(0.2, ge=0, lt=0.5)
    near_duplicates: bool = True
    seed: Seed = 0


class ResolvedConfig(Strict):
    data: DataConfig
    prepare: PrepareConfig


def prepare(config: ResolvedConfig, out: Path, downloads: Path) -> dict[str, Any]:
    """Writes the prepared data set (see data.photos, and data.truth), validation.json, rejected.jsonl and issues.csv.

    Returns the validation report. Raises ValueError if too many files are rejected or if the data set as a whole
    cannot be trained on.
    """
    out.mkdir(parents=True, exist_ok=True)
    source = sources.read_source(config.data.source, config.prepare.count, config.prepare.seed, downloads)
    intake = read_photos(source.entries, config, out)
    intake.settle()
    manifest = intake.manifest()
    report = validate_photos(source, intake, manifest, config, out)
    manifest.write_parquet(out / "manifest.parquet")
    intake.question_table().write_parquet(out / "questions.parquet")
    truth_of = {entry.path: entry.truth for entry in source.entries if entry.truth}
    write_truths(out, [truth_of[path] for path in manifest["path"]] if truth_of else [])
    write_index(out, manifest, jpegs=bool(config.data.jpeg_quality))
    write_config(config, out / "config.json")
    return report


def read_photos(entries: list[Entry], config: ResolvedConfig, out: Path) -> Intake:
    """Reads every photo once and packs the usable ones into `out`/pixels.bin. Returns what is known about each file."""
    source_splits = {entry.split for entry in entries}
    shares = {"test": config.prepare.test_share, "val": config.prepare.val_share}
    shares = {split: share for split, share in shares.items() if split not in source_splits}
    intake = Intake(out / "pixels.bin", config.prepare.seed, shares)
    rules, size, quality = config.prepare.rules(), config.data.size, config.data.jpeg_quality

    def read_photo(entry: Entry) -> ReadPhoto:
        try:
            content = entry.fetch()
        except OSError as error:  # no permission, deleted since it was listed, a failing disk
            raise Rejected("unreadable", f"{type(error).__name__}: {error.strerror or error}") from error
        image = images.read(content, size, rules)
        photo = Image.fromarray(image.pixels)
        gray = photo.convert("L")
        return ReadPhoto(
            image,
            jpeg(image.pixels, quality) if quality else image.pixels.tobytes(),
            measure(gray, image.width, image.height, size),
            sign(photo, gray) if config.prepare.near_duplicates else None,
        )

    in_order = sorted(entries, key=lambda entry: SPLIT_ORDER[entry.split])
    results = map_in_threads(lambda entry: images.reject_errors(lambda: read_photo(entry)), in_order)
    with images.pillow_limit(rules.max_pixels), intake.file:
        for entry, result in progress(zip(in_order, results, strict=True), "prepare", len(in_order), " photos"):
            intake.add(entry, result)
    return intake


def validate_photos(
    source: Source, intake: Intake, manifest: pl.DataFrame, config: ResolvedConfig, out: Path
) -> dict[str, Any]:
    """Returns the validation report. Writes it and all rejections to `out`, even if it then raises.

    Raises ValueError if too many files or caption rows are rejected, or if the whole data set cannot be trained on.
    """
    files, max_rejected = intake.files(), config.data.max_rejected
    rejected = files.filter(pl.col("kind").is_not_null()).select("path", "kind", "why")
    rejected.write_ndjson(out / "rejected.jsonl")
    tables = {
        "captions": (source.caption_rows, source.bad_rows),
        "labels": (source.label_rows, source.bad_label_rows),
    }
    for name, (_, bad_rows) in tables.items():
        write_bad_rows(bad_rows, out / f"{name}_rejected.jsonl")
    report = summary.summarize(files, manifest)
    report |= {name: {"rows": rows, "rejected": len(bad_rows)} for name, (rows, bad_rows) in tables.items()}
    issues = issue_table(manifest, intake.measures, intake.pairs)
    issues.write_csv(out / "issues.csv")
    report["issues"] = count_issues(issues)
    groups = intake.near_groups()
    report["near_duplicates"] = {"groups": len(groups), "photos": sum(map(len, groups))}
    report["together"] = {"moved": intake.moved, "left_out": intake.left_out}
    report["notes"], report["warnings"] = source.notes, []
    try:
        report["warnings"] = [*validate(files, files_schema(max_rejected)), *validate(manifest, Manifest)]
    except ValueError as error:
        total = f"rejected: {len(rejected)} of {len(files)}: {summary.format_counts(report['rejected'])}"
        raise ValueError("\n".join([str(error), *first_lines(total, rejected.iter_rows())])) from None
    finally:
        report["warnings"] += [
            *(line for name, table in tables.items() if table[1] for line in bad_row_lines(name, *table)),
            *summary.error_warnings(report["rejected"]),
            *summary.class_warnings(report["classes"], config.prepare.max_imbalance),
            *summary.bit_depth_warnings(intake.peaks, config.prepare.bit_depth),
            *summary.size_warnings(intake.packed_bytes, config.data.jpeg_quality),
        ]
        (out / "validation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, (rows, bad_rows) in tables.items():
        if len(bad_rows) > max_rejected * rows:
            raise ValueError(
                f"more than data.max_rejected {max_rejected:g} of the rows of {name} cannot be used; correct the rows "
                "that are named below, or raise max_rejected\n" + "\n".join(bad_row_lines(name, rows, bad_rows))
            )
    return report


def bad_row_lines(name: str, rows: int, bad_rows: list[BadRow]) -> list[str]:
    """Returns lines for a terminal: how many rows of captions or labels cannot be used, and the first of them."""
    total = f"rows of {name} left out: {len(bad_rows)} of {rows}"
    return first_lines(total, ((f"{row.file}, line {row.line}", row.why) for row in bad_rows))


def first_lines(total: str, items: Iterable[tuple[Any, ...]], limit: int = 10) -> list[str]:
    """Returns lines for a terminal: `total`, and at most `limit` items, each a tuple (name, …, reason)."""
    first = [f"  {name}: {why}" for name, *_, why in itertools.islice(items, limit)]
    return [f"{total}; the first:", *(line if line.isprintable() else repr(line)[1:-1] for line in first)]


def write_bad_rows(rows: list[BadRow], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields function(item) for each item, in order, and computes at most MAX_PENDING of them in advance.

    Threads are enough, because Pillow releases the interpreter's lock while it decodes.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor() as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > MAX_PENDING:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, required=True, help="folder for torchvision's data sets")
    args = parser.parse_args()
    with exit_code("prepare", parser):
        config = ResolvedConfig(data=read_section("data", DataConfig), prepare=read_section("prepare", PrepareConfig))
        report = prepare(config, args.out, args.downloads)
    rejected = summary.format_counts(report["rejected"])
    print(f"prepare: {report['used']} of {report['offered']} photos used, rejected: {rejected}")
    for line in [*report["notes"], *report["warnings"], *summary.issue_lines(report)]:
        print(f"prepare: {line}")


if __name__ == "__main__":
    main()
