"""What backbones keep of generated scenes and throw away: kind, number, colors, place, ground, and what places show.

    python -m benchmarks.kept --out FOLDER             # trains what is missing, and writes kept.md
    python -m benchmarks.kept --out FOLDER --finished  # trains nothing: the table of what is there

Each run has the settings of params.yaml, is a process of its own and is kept in --out; so is what is measured of it.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch

from benchmarks.history.cell import Cell
from benchmarks.history.runner import Runner, key
from benchmarks.methods import ROOT, machine
from components.data.photos import Photos
from components.data.truth import Truth, read_truths
from components.evaluation.known_photos import known_baselines, measure_known
from components.models.backbone import PublishedBackbone, build, load
from components.reporting.kept import COLUMNS, columns_of

TWIN = "simclr without color jitter"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {  # method and settings that differ from params.yaml, by the row's name
    "simclr": ("simclr", {}),
    TWIN: ("simclr", {"color_strength": 0.0, "gray": 0.0}),
    "moco": ("moco", {}),
    "dino": ("dino", {}),
    "vicreg": ("vicreg", {}),
    "mae": ("mae", {}),
    "contextprediction": ("contextprediction", {}),
    "supervised": ("supervised", {}),
}
PUBLISHED = {"kind": "published", "from": "efficientnet-lite0", "image_size": 64}
NEIGHBORS = 20

Scores = dict[str, dict[str, Any]]  # by column


def measured(file: Path, measure: Any) -> dict[str, Any]:
    """Returns what `file` holds; calls `measure` for it at first."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
        part.rename(file)
    return dict(json.loads(file.read_text(encoding="utf-8")))


def of_runs(runner: Runner, photos: Photos, truths: list[Truth], *, finished: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns what is measured of each row's runs, one for each seed; with `finished` of those that are there."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(runner.seeds):
        for name, (method, settings) in RUNS.items():
            cell = runner.cell(method, settings, seed=seed)
            folder = runner.out / "cells" / key(cell)
            if finished and not (folder / "result.json").is_file():
                continue
            backbone = load(runner.backbone(cell))
            metrics = measured(folder / "known.json", lambda b=backbone: measure_known(b, photos, truths, NEIGHBORS))
            rows.setdefault(name, []).append(metrics)
    return {name: rows[name] for name in RUNS if name in rows}


def of_baselines(runner: Runner, cell: Cell, photos: Photos, truths: list[Truth]) -> dict[str, dict[str, Any]]:
    """Returns what is measured of raw pixels, of the cell's backbone untrained, and of the published one."""

    def measure() -> dict[str, Any]:
        baselines = known_baselines(load(runner.backbone(cell)), photos, truths, NEIGHBORS, 0)
        published = measure_known(build(PublishedBackbone(**PUBLISHED)), photos, truths, NEIGHBORS)
        return {**baselines, "published": published}

    return measured(runner.out / "known_baselines.json", measure)


def as_metrics(measures: dict[str, Any]) -> Scores:
    return columns_of({name: {"backbone": values} for name, values in measures.items()}, "backbone")


def table(baselines: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a Markdown table: chance, the baselines, and the first seed of each run with the values of the others."""
    pixels = as_metrics(baselines["pixels"])
    chance = {name: scores.get("chance") for name, scores in pixels.items()}
    chance["corloc"] = baselines["pixels"]["dense"]["fixed_box"]["value"]
    lines = [f"| | {' | '.join(COLUMNS.values())} | positions |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    numbers = [f"{100 * chance[name]:.1f}" if chance.get(name) else "" for name in COLUMNS]
    lines.append(f"| chance; best fixed box | {' | '.join(numbers)} | |")
    for name, words in (("pixels", "raw pixels"), ("random", "untrained ViT"), ("published", "EfficientNet-Lite0")):
        scores = pixels if name == "pixels" else as_metrics(baselines[name])
        lines.append(_line(words, [scores], baselines[name]["dense"]["places"]))
    for name, seeds in rows.items():
        lines.append(_line(name, [as_metrics(seed_metrics) for seed_metrics in seeds], seeds[0]["dense"]["places"]))
    return "\n".join(lines)


def _line(name: str, seeds: list[Scores], places: list[int]) -> str:
    cells = []
    for column in COLUMNS:
        if column not in seeds[0]:
            cells.append("")
            continue
        first = seeds[0][column]
        other_seeds = "".join(f" · {100 * scores[column]['value']:.1f}" for scores in seeds[1:])
        cells.append(f"{100 * first['value']:.1f} ({100 * first['low']:.1f} to {100 * first['high']:.1f}){other_seeds}")
    return f"| {name} | {' | '.join(cells)} | {places[0]} × {places[1]} |"


def compare_twins(rows: dict[str, list[dict[str, Any]]], column: str) -> str:
    """Returns a sentence: how SimCLR differs from its twin without color jitter in a column, seed by seed."""
    pairs = list(zip(*([as_metrics(seed)[column] for seed in rows[name]] for name in ("simclr", TWIN)), strict=False))
    lower = sum(with_jitter["high"] < without_jitter["low"] for with_jitter, without_jitter in pairs)
    higher = sum(with_jitter["low"] > without_jitter["high"] for with_jitter, without_jitter in pairs)
    values = "; ".join(f"{100 * a['value']:.1f} against {100 * b['value']:.1f}" for a, b in pairs)
    verdicts = [f"{word} in {count} of {len(pairs)}" for word, count in (("lower", lower), ("higher", higher)) if count]
    return f"- {COLUMNS[column]}: {values} ({', '.join(verdicts) or 'no clear difference'})"


def page(baselines: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> str:
    comparison = "\n".join(compare_twins(rows, column) for column in COLUMNS) if {"simclr", TWIN} <= rows.keys() else ""
    missing = [name for name in RUNS if name not in rows]
    seeds = ", ".join(f"{name} {len(results)}" for name, results in rows.items())
    note = f" Not run: {', '.join(missing)}." if missing else ""
    return f"""# What each backbone keeps

Measured by `python -m benchmarks.kept` on 8,000 generated scenes, with the settings of params.yaml. Each backbone is
frozen. Numbers are in percent, on test photos: the first seed with its 95 % interval, and after each dot another seed.
Seeds: {seeds}.{note}

- kind (10 classes), number (3 or 4), place (of three objects: which quarter is empty), ground (3 classes): accuracy of
  a linear probe on the photo's feature.
- colors: is there an object that is red, yellow, green, blue, purple? The mean balanced accuracy of the five.
- mIoU: of ten kinds and ground, by a linear probe on the features of the positions, enlarged to 64 × 64 pixels. With
  more positions (last column), more is possible.
- CorLoc: the fraction of photos in which a box around what the backbone highlights has an IoU of at least 0.5 with the
  box of an object. Threshold and sign are chosen on training photos.

{table(baselines, rows)}

SimCLR against its twin, which is trained without color jitter and gray views. "Lower in 1 of 1" means: for one of one
seeds, SimCLR's interval is entirely below the twin's.

{comparison}

{machine()}
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--finished", action="store_true", help="train nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runner = Runner(args.out, seeds=args.seeds, jobs=args.jobs)
    cell = runner.cell("simclr")
    photos = Photos(runner.photos(cell))
    truths = read_truths(photos.folder)
    if truths is None:
        raise ValueError(f"{photos.folder} was prepared before masks were written; give another --out")
    baselines = of_baselines(runner, cell, photos, truths)
    text = page(baselines, of_runs(runner, photos, truths, finished=args.finished))
    (ROOT / "benchmarks" / "kept.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
