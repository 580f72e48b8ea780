"""Asks which measure without labels chooses the same snapshot of a run as labels do.

    nice -n 10 python -m benchmarks.choice                # scenes; about 8 minutes of one core
    python -m benchmarks.choice --photos /data/clothing   # a folder with class subfolders
    python -m benchmarks.choice --photos /data/clothing --published --out FOLDER  # start from EfficientNet-Lite0

Runs that learn, and runs with a setting that spoils them, are measured at nine points each, as every run is: by kNN
accuracy among photos of train and val, and without labels. Both kinds are also compared apart, since in a spoiled run
the start is expected to be the best point. Finished runs are in --out and are not repeated.
"""

from __future__ import annotations

import json
import math
import re
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from scipy.stats import spearmanr

from benchmarks.methods import ROOT, claim, machine, overlaid, stage
from components.source_files import digest

POINTS = 8  # and the start
NEAR_BEST = 0.01  # of kNN accuracy
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "contextprediction": ("contextprediction", {"epochs": 4}),
    "moco": ("moco", {"epochs": 8}),
    "simclr": ("simclr", {"epochs": 5}),
    "simclr, 25 times the learning rate": ("simclr", {"epochs": 4, "optimizer": {"lr": 0.1}}),
    "dino": ("dino", {"epochs": 5}),
    "dino without centering": ("dino", {"epochs": 4, "targets": "centering", "center_momentum": 1.0}),
    "vicreg": ("vicreg", {"epochs": 5}),
    "simsiam": ("simsiam", {"epochs": 6}),
    "simsiam, 25 times the learning rate": ("simsiam", {"epochs": 4, "optimizer": {"lr": 0.1}}),
}
ADAMW = {"kind": "adamw", "lr": 1.0e-3, "weight_decay": 0.05, "schedule": {"kind": "cosine", "warmup": 0.1}}
FULL_RATES = {"backbone_lr": 1.0, "layer_decay": 1.0, "patch_lr": 1.0, "frozen": 0.0}
WEIGHTS = {"from": "efficientnet-lite0", "image_size": 64}
COMMON = {"backbone": {"kind": "published", **WEIGHTS}, "batch_size": 64, "epochs": 3, "seed": 0}
SIMCLR = {"temperature": 0.2, "crop": [0.3, 1.0], "color_strength": 0.5, "blur": 0.0, "optimizer": ADAMW}
TEACHER = {"teacher": {**WEIGHTS, "image_size": 128}, "queue": 2048, "crop": [0.3, 1.0], "blur": 0.0}
GOING_ON: dict[str, tuple[str, dict[str, Any]]] = {  # from published weights; own settings alone
    "distill": ("distill", {**TEACHER, "optimizer": ADAMW, "start": FULL_RATES}),
    "simclr": ("simclr", SIMCLR),
    "byol": ("byol", {"views": {"crop": [0.3, 1.0]}, "optimizer": ADAMW}),
    "diet": ("diet", {}),
    "simclr, full rates for the backbone": ("simclr", {**SIMCLR, "start": FULL_RATES}),
}
SPOILED = {"simclr, 25 times the learning rate", "dino without centering", "simsiam, 25 times the learning rate"}
Line = dict[str, Any]
MEASURES: dict[str, Callable[[Line], float]] = {  # the higher, the better the features should be
    "own crop found": lambda line: line["own_crop"],
    "effective rank": lambda line: line["effective_rank"],
    "alignment (low)": lambda line: -line["alignment"],
    "uniformity (low)": lambda line: -line["uniformity"],
    "alignment + uniformity (low)": lambda line: -line["alignment"] - line["uniformity"],
    "few neighbors of the start": lambda line: -line["near_start"],
    "few neighbors by pixels": lambda line: -line["near_pixels"],
    "the last point": lambda line: line["step"],
}


def sections_of(name: str, params: dict[str, Any], *, published: bool) -> tuple[str, dict[str, Any]]:
    """Returns a run's method, and its sections of params.yaml. params: the section pretrain of the project."""
    if published:
        method, changes = GOING_ON[name]
        return method, {
            "common": COMMON,
            method: {**changes, "start": {**changes.get("start", {}), "measured": POINTS}},
        }
    method, changes = RUNS[name]
    return method, {
        "common": {**params["common"], "measured": POINTS},
        method: overlaid(params.get(method, {}), changes),
    }


def trained(method: str, sections: dict[str, Any], data: Path, folder: Path) -> list[Line]:
    """Returns the measured points of a run, which is trained in `folder` if it is not finished.

    Raises ValueError if `folder` was made from other photos or settings.
    """
    claim(folder, {"made_of": digest(data / "manifest.parquet"), "pretrain": sections})
    points_file = folder / "run" / "measured.jsonl"
    if not points_file.is_file():
        stage("pretrain", "--method", method, "--data", data, "--out", "run", cwd=folder, threads=1)
    return [json.loads(line) for line in points_file.read_text(encoding="utf-8").splitlines()]


def compare(runs: dict[str, list[Line]], measure: Callable[[Line], float]) -> dict[str, float]:
    """Returns how well a measure agrees with kNN accuracy, as means over runs, and over the points of all runs.

    within, over: rank correlations (Spearman), NaN where the measure is the same at all points; same: the share of runs
    of which both choose the same point; near: of which the chosen one is within NEAR_BEST of the best; regret: by how
    much the chosen point's accuracy is below the best's.
    """
    values = {name: [measure(line) for line in lines] for name, lines in runs.items()}
    accuracies = {name: [line["value"] for line in lines] for name, lines in runs.items()}
    chosen = {name: accuracies[name][value.index(max(value))] for name, value in values.items()}  # the first of equals
    regrets = {name: max(accuracies[name]) - accuracy for name, accuracy in chosen.items()}
    correlations = [_correlation(values[name], accuracies[name]) for name in runs]
    finite = [correlation for correlation in correlations if not math.isnan(correlation)]
    pooled = [[x for name in runs for x in by_run[name]] for by_run in (values, accuracies)]
    return {
        "within": mean(finite) if finite else math.nan,
        "over": _correlation(*pooled),
        "same": mean(regret == 0 for regret in regrets.values()),
        "near": mean(regret <= NEAR_BEST for regret in regrets.values()),
        "regret": mean(regrets.values()),
        "worst": max(regrets.values()),
    }


def _correlation(values: list[float], accuracies: list[float]) -> float:
    constant = 1 in (len(set(values)), len(set(accuracies)))
    return math.nan if constant else float(spearmanr(values, accuracies).statistic)


def tables(runs: dict[str, list[Line]]) -> str:
    """Returns the agreement of each measure, and kNN accuracy and the measures of each point, as Markdown."""
    groups = {"All runs": runs}
    if SPOILED & runs.keys():
        groups["Runs that were not spoiled"] = {name: lines for name, lines in runs.items() if name not in SPOILED}
        groups["Spoiled runs"] = {name: lines for name, lines in runs.items() if name in SPOILED}
    parts = [f"{title} ({len(group)}):\n\n{_agreement(group)}" for title, group in groups.items()]
    return "\n\n".join([*parts, _points(runs)])


def _agreement(runs: dict[str, list[Line]]) -> str:
    rows = [
        "| chosen by | rank correlation within a run | over all runs | same point as labels | within 1 point "
        "| regret, mean | regret, worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measure in MEASURES.items():
        agreement = compare(runs, measure)
        shares = " | ".join(f"{agreement[share] * len(runs):.0f} of {len(runs)}" for share in ("same", "near"))
        regret = " | ".join(f"{100 * agreement[kind]:.1f}" for kind in ("regret", "worst"))
        rows.append(f"| {name} | {agreement['within']:.2f} | {agreement['over']:.2f} | {shares} | {regret} |")
    return "\n".join(rows)


def _points(runs: dict[str, list[Line]]) -> str:
    measures = ("value", "own_crop", "effective_rank", "alignment", "uniformity", "near_start", "near_pixels")
    heads = ("kNN", "own crop", "rank", "alignment", "uniformity", "near start", "near pixels")
    rows = [f"| run, step | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, lines in runs.items():
        for line in lines:
            cells = " | ".join(f"{line[measure]:.{0 if measure == 'effective_rank' else 3}f}" for measure in measures)
            rows.append(f"| {name}, {line['step']} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "choice")
    parser.add_argument("--photos", help="a folder of class folders, in place of scenes")
    parser.add_argument("--count", type=int, default=4000, help="scenes")
    parser.add_argument("--published", action="store_true", help="runs that start from published weights; on --photos")
    args = parser.parse_args()
    if args.published and not args.photos:
        parser.error("--published needs --photos: published weights know scenes without training")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["count"] = args.count
    if args.photos:
        params["data"]["source"] = str(Path(args.photos).resolve())
    if args.published:
        params["data"]["size"] = TEACHER["teacher"]["image_size"]
    out = args.out.resolve()
    claim(out, {name: params[name] for name in ("data", "prepare")})
    if not (out / "prepare" / "manifest.parquet").is_file():
        stage("prepare", "--out", out / "prepare", "--downloads", ROOT / "data", cwd=out)
    runs = {}
    for name in GOING_ON if args.published else RUNS:
        method, sections = sections_of(name, params["pretrain"], published=args.published)
        runs[name] = trained(method, sections, out / "prepare", out / re.sub("[^a-z0-9]+", "-", name))
    print(f"{len(runs)} runs of {1 + POINTS} points, {runs['simclr'][0]['measured']}; {machine()}\n\n{tables(runs)}")


if __name__ == "__main__":
    main()
