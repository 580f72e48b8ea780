"""Stage prepare: reads the photos of a data source, and writes their pixels in one file and a validated table of them.

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
from pydantic import Field

from components.config import Fraction, Seed, Strict, read_section, write_config
from components.data import images, sources, summary
from components.data.checks import CheckConfig, Manifest, files_schema, validate
from components.data.entries import BadRow, Entry, Source
from components.data.images import DecodedImage, Rejected
from components.data.intake import Intake
from components.data.photos import jpeg, write_index
from components.progress import progress
from components.stages.exit_code import exit_code

SPLIT_ORDER = {"test": 0, "val": 1, "train": 2, None: 3}  # a photo in two splits is kept in the first of these
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
    """

    count: int = Field(8000, ge=10)
    val_share: float = Field(0.1, ge=0, lt=0.5)
    test_share: float = Field(0.2, ge=0, lt=0.5)
    seed: Seed = 0


class ResolvedConfig(Strict):
    data: DataConfig
    prepare: PrepareConfig


def prepare(config: ResolvedConfig, out: Path, downloads: Path) -> dict[str, Any]:
    """Writes the prepared data set (see data.photos), validation.json and rejected.jsonl to `out`.

    Returns the validation report. Raises ValueError if too many files are rejected or if the data set as a whole
    cannot be trained on.
    """
    out.mkdir(parents=True, exist_ok=True)
    source = sources.read_source(config.data.source, config.prepare.count, config.prepare.seed, downloads)
    intake = read_photos(source.entries, config, out)
    manifest = intake.manifest()
    report = validate_photos(source, intake, manifest, config, out)
    manifest.write_parquet(out / "manifest.parquet")
    intake.question_table().write_parquet(out / "questions.parquet")
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

    def read_photo(entry: Entry) -> tuple[DecodedImage, bytes]:
        try:
            content = entry.fetch()
        except OSError as error:  # no permission, deleted since it was listed, a failing disk
            raise Rejected("unreadable", f"{type(error).__name__}: {error.strerror or error}") from error
        image = images.read(content, size, rules)
        return image, jpeg(image.pixels, quality) if quality else image.pixels.tobytes()

    in_order = sorted(entries, key=lambda entry: SPLIT_ORDER[entry.split])
    results = map_in_threads(lambda entry: images.reject_errors(lambda: read_photo(entry)), in_order)
    with images.pillow_limit(rules.max_pixels), intake.file:
        for entry, result in progress(zip(in_order, results, strict=True), "prepare", len(in_order), " photos"):
            image, packed = (result, b"") if isinstance(result, Rejected) else result
            intake.add(entry, image, packed)
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
    write_bad_rows(source.bad_rows, out / "captions_rejected.jsonl")
    report = summary.summarize(files, manifest)
    report["captions"] = {"rows": source.caption_rows, "rejected": len(source.bad_rows)}
    report["notes"], report["warnings"] = source.notes, []
    try:
        report["warnings"] = [*validate(files, files_schema(max_rejected)), *validate(manifest, Manifest)]
    except ValueError as error:
        total = f"rejected: {len(rejected)} of {len(files)}: {summary.format_counts(report['rejected'])}"
        raise ValueError("\n".join([str(error), *first_lines(total, rejected.iter_rows())])) from None
    finally:
        report["warnings"] += [
            *(caption_lines(source) if source.bad_rows else []),
            *summary.error_warnings(report["rejected"]),
            *summary.class_warnings(report["classes"], config.prepare.max_imbalance),
            *summary.bit_depth_warnings(intake.peaks, config.prepare.bit_depth),
            *summary.size_warnings(intake.packed_bytes, config.data.jpeg_quality),
        ]
        (out / "validation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if len(source.bad_rows) > max_rejected * source.caption_rows:
        raise ValueError(
            f"more than data.max_rejected {max_rejected:g} of the rows of captions cannot be used; correct the rows "
            "that are named below, or raise max_rejected\n" + "\n".join(caption_lines(source))
        )
    return report


def caption_lines(source: Source) -> list[str]:
    """Returns lines for a terminal: how many caption rows cannot be used, and the first of them."""
    total = f"rows of captions left out: {len(source.bad_rows)} of {source.caption_rows}"
    return first_lines(total, ((f"{row.file}, line {row.line}", row.why) for row in source.bad_rows))


def first_lines(total: str, items: Iterable[tuple[Any, ...]], shown: int = 10) -> list[str]:
    """Returns lines for a terminal: `total`, and the first `shown` items, each a tuple (name, …, reason)."""
    first = [f"  {name}: {why}" for name, *_, why in itertools.islice(items, shown)]
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
    for line in [*report["notes"], *report["warnings"]]:
        print(f"prepare: {line}")


if __name__ == "__main__":
    main()
