"""The main numbers and the curves of all stages as plain files, for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.reporting.basis import scored_photos
from components.reporting.kept import columns_of
from components.reporting.results import Results

METRICS, LOSSES, LEARNED = "metrics.json", "losses", "learned"
COMPARISONS = "comparisons.json"


def plain_metrics(results: Results) -> dict[str, Any]:
    """Returns the values without their intervals, so that two runs can be compared line by line.

    By measure and method kNN and linear accuracy (where there are labels) and effective rank, of the first seed; where
    there are several, also mean and standard deviation over seeds; and of each pair of methods by how much they differ,
    in words. Of generated photos also what a backbone keeps (keeps_COLUMN). Of the adapter, of words and of the answers
    the proportions that the summary has. With n, seeds, command.
    """
    numbers: dict[str, Any] = {"knn": {}, "linear": {}, "effective_rank": {}}
    for name, metrics in results.methods.items():
        numbers["effective_rank"][name] = metrics["health"]["effective_rank"]
        for kind in ("knn", "linear") if "backbone" in metrics else ():
            numbers[kind][name] = metrics["backbone"][kind]["value"]
        for column, scores in columns_of(metrics, "backbone").items():
            numbers.setdefault(f"keeps_{column}", {})[name] = scores["value"]
        seeds = metrics.get("seeds", {})
        for kind in ("knn", "linear", "effective_rank") if seeds.get("count", 1) > 1 else ():
            if kind in seeds:
                numbers.setdefault(f"{kind}_over_seeds", {})[name] = seeds[kind]
    found = {
        "adapter": results.adapter.get("accuracy"),
        "adapter_map": results.adapter.get("mean_average_precision"),
        "words": results.words.get("zero_shot", {}).get("top1"),
        "answers": results.answering.get("exact_match"),
        "answers_blind": results.answering.get("blind"),
    }
    numbers |= {name: proportion["value"] for name, proportion in found.items() if proportion}
    for kind, pairs in results.compared.items():
        methods = [pair for pair in pairs if {pair.first, pair.second} <= results.methods.keys()]
        numbers[f"{kind}_compared"] = {" and ".join(sorted((p.first, p.second))): p.words() for p in methods}
    if n := scored_photos(results):
        numbers["n"] = n  # test photos
    return numbers | {"seeds": {name: results.seeds(name) for name in results.methods}, "command": "dvc repro"}


def write(results: Results, out: Path) -> None:
    """Writes metrics.json, comparisons.json and the curves of each method to `out`.

    losses/METHOD.csv: step and loss; learned/METHOD.csv: photos_seen, and what the features were worth then as value,
    from 0 to 1 (see snapshots.py for what is measured).
    """
    compared = {
        kind: [{**asdict(pair), "difference_shown": pair.shown, "words": pair.words()} for pair in pairs]
        for kind, pairs in results.compared.items()
    }
    (out / COMPARISONS).write_text(json.dumps(compared, indent=2) + "\n", encoding="utf-8")
    (out / METRICS).write_text(json.dumps(plain_metrics(results), indent=2) + "\n", encoding="utf-8")
    losses = {name: [(line["step"], line["loss"]) for line in lines] for name, lines in results.logs.items()}
    learned = {name: points for curves in results.learned().values() for name, points in curves.items()}
    _write_curves(out / LOSSES, ("step", "loss"), losses)
    _write_curves(out / LEARNED, ("photos_seen", "value"), learned)


def _write_curves(folder: Path, columns: tuple[str, str], curves: dict[str, list[tuple[float, float]]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, points in curves.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *points])
