"""Classifiers of each kind on one backbone and the same photos: accuracy, above a linear one, calibration, time, size.

    python -m benchmarks.adapters --backbone artifacts/pretrain/simclr --data artifacts/prepare
    python -m benchmarks.adapters --backbone … --data … --kinds full --settings '{epochs: 40}' --name "full, 40 epochs"

Each row is the stage `adapt` as dvc.yaml runs it, in a process and a folder of its own; what is finished is kept. The
seconds are those of the process without the ONNX file, so that each kind has the same start and end.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args

import yaml

from benchmarks.methods import ROOT, claim, machine, percent, stage
from components.adapters.kinds import Kind


def measure(name: str, settings: dict[str, Any], backbone: Path, data: Path, out: Path) -> dict[str, Any]:
    """Trains one classifier in a folder of its own. Returns its row. name: of the row."""
    folder = out / name.replace(" ", "_").replace(",", "")
    claim(folder, {"adapt": {"method": backbone.name, "onnx": False, **settings}})
    result = folder / "result.json"
    if result.is_file():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    start = time.monotonic()
    stage("adapt", "--backbone", backbone, "--data", data, "--out", folder / "adapt", cwd=folder)
    seconds = time.monotonic() - start
    metrics = json.loads((folder / "adapt" / "metrics.json").read_text(encoding="utf-8"))
    result.write_text(json.dumps({"name": name, "seconds": seconds, **metrics}, indent=2) + "\n", encoding="utf-8")
    return dict(json.loads(result.read_text(encoding="utf-8")))


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table, one row a kind."""
    columns = [
        "mAP" if "mean_average_precision" in rows[0] else "accuracy",
        "above linear, points",
        "calibration error before, after",
        "epoch kept",
        "trained",
        "seconds",
    ]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        difference, best_epoch, calibration = "", "", row["calibration"]
        if "above_linear" in row:
            points = {key: 100 * row["above_linear"][key] for key in ("value", "low", "high")}
            difference = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**points)
        if "kept_epoch" in row:
            best_epoch = f"{row['kept_epoch']} of {row['epochs'][-1]['epoch']}"
        error = f"{100 * calibration['ece_before']:.1f} → {100 * calibration['ece_after']:.1f}"
        score = percent(row.get("mean_average_precision") or row["accuracy"])
        num_trained, seconds = f"{row['trained_parameters']:,}", f"{row['seconds']:.0f}"
        lines.append(f"| {' | '.join([row['name'], score, difference, error, best_epoch, num_trained, seconds])} |")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", type=Path, required=True, help="folder written by pretrain")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--kinds", nargs="+", default=get_args(Kind), choices=get_args(Kind))
    parser.add_argument("--settings", default="{}", help="of the section adapt, as YAML")
    parser.add_argument("--name", help="of the row, if there is one; by default that of the kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "adapters")
    args = parser.parse_args()
    settings = {"seed": args.seed, **yaml.safe_load(args.settings)}
    backbone, data, out = args.backbone.resolve(), args.data.resolve(), args.out.resolve()
    rows = [
        measure(args.name or kind, {"kind": kind, **settings}, backbone, data, out / args.backbone.name)
        for kind in args.kinds
    ]
    print(f"{machine()}: `python -m benchmarks.adapters {' '.join(sys.argv[1:])}`\n\n{table(rows)}")


if __name__ == "__main__":
    main()
