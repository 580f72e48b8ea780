"""A published backbone on labeled photos: untouched, gone on with by methods without labels, and distilled.

    python -m benchmarks.published --photos data/clothing --sizes 64 128 224                      # untouched
    python -m benchmarks.published --photos data/clothing --sizes 64 --methods diet simclr --seeds 0 1 2
    python -m benchmarks.published --photos data/clothing --sizes 96 --packed 144 --students vit resnet18 --epochs 30

Each run is `pretrain` and `evaluate` as dvc.yaml runs them, in a folder of its own; what is finished is kept. Choices
(which snapshot) are made on train and val; the numbers of the table are on test.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.methods import ROOT, claim, machine, percent, stage
from components.data.photos import Photos
from components.evaluation.features import features
from components.evaluation.few_labels import SHOTS, few_labels
from components.methods import TRAINED
from components.models.backbone import load

STUDENTS: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "patch_size": 16, "width": 192, "depth": 6, "heads": 3, "pool": "mean", "square": "crop"},
    "resnet18": {"kind": "resnet18", "square": "crop"},
}


def measure(method: str, name: str, params: dict[str, Any], data: Path, out: Path) -> dict[str, Any]:
    """Trains and evaluates in a folder of its own. Returns its row. name: of the row."""
    common = params["pretrain"]["common"]
    size, seed = common["backbone"]["image_size"], common["seed"]
    folder = out / f"{name}_{size}_{seed}".replace(" ", "_")
    claim(folder, params)
    result = folder / "result.json"
    if result.is_file():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    training_start = time.monotonic()
    stage("pretrain", "--method", method, "--data", data, "--out", folder / "pretrain", cwd=folder)
    minutes = (time.monotonic() - training_start) / 60
    stage("evaluate", "--backbone", folder / "pretrain", "--data", data, "--out", folder / "evaluate", cwd=folder)
    metrics = json.loads((folder / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    start = folder / "pretrain" / "start.json"
    row = {
        "name": name,
        "size": size,
        "seed": seed,
        "minutes": round(minutes, 1),
        **{key: metrics[key] for key in ("backbone", "against_start", "selection") if key in metrics},
        "few": few(folder / "pretrain" / "backbone", Photos(data)),
        **({"kept": json.loads(start.read_text(encoding="utf-8"))} if start.is_file() else {}),
    }
    result.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def few(backbone: Path, photos: Photos) -> dict[str, list[float]]:
    """Returns for each number of labels a class the mean accuracies on test, by nearest photo and by linear probe."""
    scores = few_labels(features(load(backbone), photos, "few labels"), photos)
    return {shots: [accuracies["knn"]["mean"], accuracies["linear"]["mean"]] for shots, accuracies in scores.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table, one row a run."""
    names = " | ".join(f"{count} label{'s' * (count > 1)}" for count in SHOTS)
    lines = [
        f"| | px | seed | kNN top-1 | linear top-1 | kNN above its start, points | {names} | minutes |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        difference = ""
        if comparison := row.get("against_start"):
            difference = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(
                **{key: 100 * comparison["knn"][key] for key in ("value", "low", "high")}
            )
        scores = [percent(row["backbone"][kind]) for kind in ("knn", "linear")]
        accuracies = [row["few"].get(str(count)) for count in SHOTS]
        shots = [f"{100 * pair[0]:.1f} / {100 * pair[1]:.1f}" if pair else "–" for pair in accuracies]
        cells = [row["name"], str(row["size"]), str(row["seed"]), *scores, difference, *shots, str(row["minutes"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def params_of(
    args: Namespace, method: str, backbone: dict[str, Any], settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Returns the contents of params.yaml of one run. settings: of the method."""
    common = {"backbone": backbone, "batch_size": args.batch_size, "epochs": args.epochs, "seed": seed}
    return {"pretrain": {"common": common, method: settings}, "evaluate": {"neighbors": 20}}


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder with one subfolder for each class")
    parser.add_argument("--source", default="efficientnet-lite0", help="a Hugging Face id, or a folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="pixels")
    parser.add_argument("--methods", nargs="*", default=[], choices=TRAINED, metavar="METHOD")
    parser.add_argument("--students", nargs="*", default=[], choices=STUDENTS, help="that the source is distilled into")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", default="{}", help="of the method, as YAML")
    parser.add_argument("--packed", type=int, help="pixels of the shorter side, as packed; the largest of --sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "published")
    args = parser.parse_args()
    out = args.out.resolve()
    packed = args.packed or max(args.sizes)
    data = out / f"prepare_{packed}"
    prepare = {"data": {"source": str(args.photos.resolve()), "size": packed}, "prepare": {"seed": 0}}
    if not (data / "manifest.parquet").is_file():
        claim(out / "params", prepare)
        stage("prepare", "--out", data, "--downloads", ROOT / "data", cwd=out / "params")
    rows = []
    for size in args.sizes:
        as_published = [] if args.students and not args.methods else [("published", 0)]
        for name, seed in [*as_published, *((name, seed) for name in args.methods for seed in args.seeds)]:
            backbone = {"kind": "published", "from": args.source, "image_size": size}
            settings = {} if name == "published" else yaml.safe_load(args.settings)
            rows.append(measure(name, name, params_of(args, name, backbone, settings, seed), data, out))
        for student, seed in ((student, seed) for student in args.students for seed in args.seeds):
            teacher = {"from": args.source, "image_size": 128}
            settings = {"teacher": teacher, **yaml.safe_load(args.settings)}
            params = params_of(args, "distill", {**STUDENTS[student], "image_size": size}, settings, seed)
            rows.append(measure("distill", f"distilled into {student}", params, data, out))
    print(
        f"{args.photos.name}, {machine()}: `python -m benchmarks.published {' '.join(sys.argv[1:])}`\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
