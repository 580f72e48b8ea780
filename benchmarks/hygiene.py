"""Measures how many planted near-duplicates, blurred and dark pictures `prepare` finds, and how many it names wrongly.

    python -m benchmarks.hygiene                          # 500 scenes with 20 planted of each sort
    python -m benchmarks.hygiene --photos FOLDER --sheet issues.png   # 500 photos of yours, to look at what is found

With --photos nothing is planted unless --plant is given: photos have near-duplicates and blurred ones of their own.
"""

from __future__ import annotations

import io
import json
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageFilter

from components.data import scenes
from components.data.issues import NEAR_DUPLICATE
from components.data.photos import Photos
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def resized(image: Image.Image, random: np.random.Generator) -> Image.Image:
    scale = random.uniform(0.6, 1.5)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def recompressed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(random.integers(30, 80)))
    return Image.open(file).convert("RGB")


def relit(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return _times(image, random.choice([0.97, 1.03]))


def cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Cuts 2 % of the width and of the height, rounded up (of 64 pixels: 2), anywhere at the edges."""
    margins = [int(np.ceil(0.02 * side)) for side in image.size]
    left, top = (int(random.integers(0, limit + 1)) for limit in margins)
    return image.crop((left, top, left + image.width - margins[0], top + image.height - margins[1]))


def blurred(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Gaussian, with a standard deviation of 2.5 to 6 % of the shorter side (of 64 pixels: 1.6 to 3.8)."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.025, 0.06) * min(image.size)))


def dark(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return _times(image, random.uniform(0.05, 0.22))


def _times(image: Image.Image, factor: float) -> Image.Image:
    return image.point(lambda value: round(value * factor))


COPIES: dict[str, Change] = {"resized": resized, "recompressed": recompressed, "relit": relit, "cropped": cropped}
CHANGES: dict[str, Change] = {"blurred": blurred, "dark": dark}


def plant(images: Sequence[Image.Image], folder: Path, count: int, seed: int = 0) -> dict[str, str]:
    """Writes the images as PNG files: `count` of them blurred, `count` dark, and near-duplicates of `count` others.

    Returns the sort of every planted file, by name.
    """
    random = np.random.default_rng(seed)
    order = iter(random.permutation(len(images)).tolist())
    planted, files = {}, {f"{index:05d}.png": image for index, image in enumerate(images)}
    for sort, change in CHANGES.items():
        for index in (next(order) for _ in range(count)):
            name = f"{index:05d}.png"
            files[name], planted[name] = change(images[index], random), sort
    for sort, change in COPIES.items():
        for index in (next(order) for _ in range(count)):
            name = f"{index:05d}_{sort}.png"
            files[name], planted[name] = change(images[index], random), sort
    folder.mkdir(parents=True)
    for name, image in files.items():
        image.save(folder / name)
    return planted


def find_issues(folder: Path, out: Path, size: int) -> pl.DataFrame:
    """Returns the issues that `prepare` names."""
    config = ResolvedConfig(data=DataConfig(source=str(folder), size=size), prepare=PrepareConfig())
    prepare(config, out, out)
    return pl.read_csv(out / "issues.csv", schema_overrides={"other": pl.String})


def scores(issues: pl.DataFrame, planted: dict[str, str]) -> list[tuple[str, int, int, int]]:
    """Returns for each sort how many were planted, how many found, and the wrong alarms of its kind of issue.

    A near-duplicate is found if it is paired with its original.
    """
    rows = []
    for sort in (*COPIES, *CHANGES):
        names = {name for name, planted_sort in planted.items() if planted_sort == sort}
        kind = NEAR_DUPLICATE if sort in COPIES else sort
        reported = issues.filter(pl.col("kind") == kind)
        if sort in COPIES:
            originals = {name: name.replace(f"_{sort}", "") for name in names}
            pairs = set(reported.select("path", "other").iter_rows())
            hits = sum((name, original) in pairs for name, original in originals.items())
            expected = {name for name, copy in planted.items() if copy in COPIES}
            expected |= {name.partition("_")[0] + ".png" for name in expected}
        else:
            hits, expected = len(names & set(reported["path"])), names
        rows.append((sort, len(names), hits, len(set(reported["path"]) - expected)))
    return rows


def sheet(issues: pl.DataFrame, data: Path, file: Path, side: int = 96, columns: int = 12) -> None:
    """Writes a picture of all photos with issues: a row for each kind, near-duplicates beside each other."""
    photos = Photos(data)
    row_of = {path: row for row, path in enumerate(photos.manifest["path"])}
    lines: list[list[str]] = []
    for kind in issues["kind"].unique(maintain_order=True):
        kind_issues = issues.filter(pl.col("kind") == kind).sort("score")
        names = [
            name for path, other in kind_issues.select("path", "other").iter_rows() for name in (path, other) if name
        ]
        lines += [names[start : start + columns] for start in range(0, len(names), columns)]
    canvas = Image.new("RGB", (side * columns, side * max(1, len(lines))), "white")
    for top, line in enumerate(lines):
        for left, name in enumerate(line):
            photo = Image.fromarray(photos[row_of[name]].permute(1, 2, 0).numpy())
            photo.thumbnail((side - 2, side - 2))
            canvas.paste(photo, (left * side, top * side))
    canvas.save(file)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--plant", type=int, help="pictures of each sort; default: 20 in scenes, 0 in photos")
    parser.add_argument("--photos", type=Path, help="a folder; by default scenes are drawn")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a picture of what was found")
    args = parser.parse_args()
    count = args.plant if args.plant is not None else (0 if args.photos else 20)
    if args.photos:
        files = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        sample = np.random.default_rng(args.seed).permutation(len(files))[: args.count]
        images = [Image.open(files[index]).convert("RGB") for index in sorted(sample.tolist())]
    else:
        images = [Image.fromarray(scenes.draw(args.seed, index).pixels) for index in range(args.count)]
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(images, Path(folder) / "photos", count, args.seed)
        issues = find_issues(Path(folder) / "photos", Path(folder) / "out", args.size)
        report = json.loads((Path(folder) / "out" / "validation.json").read_text(encoding="utf-8"))
        if args.sheet:
            sheet(issues, Path(folder) / "out", args.sheet)
    print("| planted | of each | found | wrong alarms of its kind |\n|---|---|---|---|")
    for sort, planted_count, hits, wrong in scores(issues, planted) if count else ():
        print(f"| {sort} | {planted_count} | {hits} | {wrong} of {len(images) - count} |")
    print(f"\nall issues: { ({kind: issue['count'] for kind, issue in report['issues'].items()}) }")
    print(f"near-duplicates: {report['near_duplicates']}, because of them or of groups: {report['together']}")


if __name__ == "__main__":
    main()
