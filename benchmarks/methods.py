"""Trains every method on the same photos with the settings of params.yaml, and prints a table of accuracies.

    python -m benchmarks.methods                                   # all methods, on the photos of params.yaml
    python -m benchmarks.methods --methods dino byol --epochs 2    # twice the epochs of params.yaml
    python -m benchmarks.methods --params benchmarks/cifar10.yaml  # other photos: the file overrides params.yaml
    python -m benchmarks.methods --budget long                     # on a GPU: a published protocol on CIFAR-10

Each method runs the stages `pretrain` and `evaluate` in their own processes, as dvc.yaml does. Finished methods are in
--out and are not repeated, so that a table can be made in several runs. --cards writes the numbers into docs/methods.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from components.methods import METHODS, TRAINED
from components.source_files import digest

ROOT = Path(__file__).parents[1]
MARK = "<!-- measured -->"
LONG = "benchmarks/cifar10_long.yaml"


def stage(name: str, *arguments: str | Path, cwd: Path, threads: int | None = None) -> None:
    """Runs one stage in the folder `cwd`, whose params.yaml it reads."""
    command = [sys.executable, "-m", f"components.stages.{name}", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run(command, cwd=cwd, check=True, env=env)


def measure(method: str, params: dict[str, Any], data: Path, out: Path, threads: int | None) -> dict[str, Any]:
    """Trains and evaluates one method in out/METHOD. Returns its row of the table, from out/METHOD if it is finished.

    Raises ValueError if out/METHOD was made from other photos or settings.
    """
    folder = out / method
    result = folder / "result.json"
    sections = {name: params["pretrain"].get(name, {}) for name in ("common", method)}
    claim(folder, {"made_of": digest(data / "manifest.parquet"), "pretrain": sections, "evaluate": params["evaluate"]})
    if result.is_file():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    start = time.monotonic()
    paths = {name: folder / name for name in ("pretrain", "evaluate")}
    stage("pretrain", "--method", method, "--data", data, "--out", paths["pretrain"], cwd=folder, threads=threads)
    minutes = (time.monotonic() - start) / 60
    args = ("--backbone", paths["pretrain"], "--data", data, "--out", paths["evaluate"])
    stage("evaluate", *args, cwd=folder, threads=threads)
    config, metrics = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("pretrain/config.json", "evaluate/metrics.json")
    )
    last = (folder / "pretrain" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    results = {
        "method": method,
        "epochs": config["epochs"],
        "pictures": json.loads(last)["step"] * config["batch_size"],
        "seed": config["seed"],
        "minutes": round(minutes, 1),
        **{name: metrics[name] for name in ("majority", "pixels", "random", "backbone")},
    }
    result.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def claim(folder: Path, params: dict[str, Any]) -> None:
    """Writes `params` to folder/params.yaml. Raises ValueError if the folder has other ones."""
    text, file = yaml.safe_dump(params, sort_keys=False), folder / "params.yaml"
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise ValueError(f"{folder} holds results of other pictures or settings; remove it, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def overlaid(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with the settings of `override` in place of its own, section by section.

    A section of `override` with another `kind` replaces the whole section.
    """
    if override.get("kind", base.get("kind")) != base.get("kind"):
        return override
    pairs = {key: (base.get(key), value) for key, value in override.items()}
    merged = {key: overlaid(*pair) for key, pair in pairs.items() if all(isinstance(part, dict) for part in pair)}
    return {**base, **override, **merged}


def percent(score: dict[str, Any]) -> str:
    """Returns a proportion with its 95 % interval."""
    return f"{score['value']:.1%} ({100 * score['low']:.1f} to {100 * score['high']:.1f})".replace("%", " %")


def table(rows: list[dict[str, Any]], *, minutes: bool = True) -> str:
    """Returns a Markdown table: the baselines, then every method of `rows` beside its own backbone before training.

    minutes: of training, which mean something only where the machine did nothing else.
    """
    columns = ["kNN top-1", "untrained", "linear top-1", "untrained", "pictures seen", *["minutes"] * minutes]
    first = rows[0]  # the baselines are the same in all rows
    majority, pixels = first["majority"]["top1"], first["pixels"]
    table_rows = [["majority", percent(majority)]]
    table_rows.append(["raw pixels", percent(pixels["knn"]), "", percent(pixels["linear"])])
    for row in rows:
        pairs = [(row["backbone"][name], row["random"][name]["value"]) for name in ("knn", "linear")]
        scores = [text for score, before in pairs for text in (percent(score), f"{100 * before:.1f} %")]
        table_rows.append([row["method"], *scores, f"{row['pictures']:,}", *[str(row["minutes"])] * minutes])
    lines = [" | ".join(["", *cells, *[""] * (len(columns) + 1 - len(cells)), ""]).strip() for cells in table_rows]
    return "\n".join([f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns), *lines])


def machine() -> str:
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} {platform.machine()} cores"
    )
    return f"{device}, torch {torch.__version__}"


def write_cards(rows: list[dict[str, Any]], description: str, cards: Path) -> None:
    """Writes each method's numbers and the baselines below the MARK in its card. description: of data and command."""
    for row in rows:
        card = cards / f"{row['method']}.md"
        if not card.is_file():
            continue  # mocoscriptstyle has no card of its own
        before, mark, rest = card.read_text(encoding="utf-8").partition(MARK)
        if not mark:
            raise ValueError(f"{card} has no line {MARK}")
        after = rest[rest.index("\n## ") :] if "\n## " in rest else "\n"
        heading = f"{description} Seed {row['seed']}, {row['epochs']} epochs."
        section = f"{MARK}\n{heading}\n\n{table([row], minutes=False)}\n"
        card.write_text(before + section + after, encoding="utf-8")


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, help="a file whose settings override params.yaml")
    parser.add_argument("--budget", choices=("short", "long"), default="short", help=f"long: --params {LONG}")
    parser.add_argument("--data", type=Path, help="folder written by prepare (default: prepare is run)")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "benchmark")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="default: all")
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many methods at once; the cores are divided among them"
    )
    parser.add_argument("--epochs", type=float, default=1.0, help="factor by which the epochs are multiplied")
    parser.add_argument("--cards", action="store_true", help="write the numbers into docs/methods")
    args = parser.parse_args()
    default_methods = list(TRAINED)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if file := args.params or (ROOT / LONG if args.budget == "long" else None):
        overrides = yaml.safe_load(file.read_text(encoding="utf-8"))
        params, default_methods = overlaid(params, overrides), overrides.get("methods", default_methods)
    names = args.methods or default_methods
    if (folder := ROOT / params["data"]["source"]).is_dir():  # stages run in other folders
        params["data"]["source"] = str(folder)
    for settings in params["pretrain"].values():
        if "epochs" in settings:
            settings["epochs"] = max(1, round(settings["epochs"] * args.epochs))
    out = args.out.resolve()
    data = args.data.resolve() if args.data else out / "prepare"
    if not args.data:
        claim(out, {name: params[name] for name in ("data", "prepare")})
    if not (data / "manifest.parquet").is_file():
        stage("prepare", "--out", data, "--downloads", ROOT / "data", cwd=out)
    threads = max(1, (os.cpu_count() or 1) // args.jobs) if args.jobs > 1 else None
    with ThreadPoolExecutor(args.jobs) as pool:  # threads that only wait for processes
        rows = list(pool.map(lambda method: measure(method, params, data, out, threads), names))
    command = "`python -m benchmarks.methods" + "".join(f" {word}" for word in sys.argv[1:]) + "`"
    description = f"Data {Path(params['data']['source']).name}, {machine()}: {command}."
    text = f"{description}\n\n{table(rows)}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    if args.cards:
        write_cards(rows, description, ROOT / "docs" / "methods")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmarks.methods: {error}")
