"""The main numbers and the curves of all stages as plain files, for `dvc metrics` and `dvc plots`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from components.reporting.results import Results

METRICS, LOSSES = "metrics.json", "losses"


def plain_metrics(results: Results) -> dict[str, Any]:
    """Returns the values without their intervals, so that two runs can be compared line by line.

    By measure and method kNN and linear accuracy (where there are labels) and effective rank; of the adapter, of words
    and of the answers the proportions that the summary has.
    """
    numbers: dict[str, Any] = {"knn": {}, "linear": {}, "effective_rank": {}}
    for name, metrics in results.methods.items():
        numbers["effective_rank"][name] = metrics["health"]["effective_rank"]
        for kind in ("knn", "linear") if "backbone" in metrics else ():
            numbers[kind][name] = metrics["backbone"][kind]["value"]
    found = {
        "adapter": results.adapter.get("accuracy"),
        "adapter_map": results.adapter.get("mean_average_precision"),
        "words": results.words.get("zero_shot", {}).get("top1"),
        "answers": results.answering.get("exact_match"),
        "answers_blind": results.answering.get("blind"),
    }
    return numbers | {name: proportion["value"] for name, proportion in found.items() if proportion}


def write(results: Results, out: Path) -> None:
    """Writes metrics.json, and losses/METHOD.csv with the columns step and loss, to `out`."""
    (out / METRICS).write_text(json.dumps(plain_metrics(results), indent=2) + "\n", encoding="utf-8")
    (out / LOSSES).mkdir(exist_ok=True)
    for name, lines in results.logs.items():
        with (out / LOSSES / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", "loss"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)
