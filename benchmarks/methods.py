"""Every method on the same pictures with the backbone and the budget of params.yaml: kNN and linear, one table.

    python -m benchmarks.methods                                   # all methods, on the pictures of params.yaml
    python -m benchmarks.methods --methods dino byol --epochs 2    # twice the epochs of params.yaml
    python -m benchmarks.methods --params benchmarks/cifar10.yaml  # other pictures: what differs from params.yaml
    python -m benchmarks.methods --budget long                     # on a GPU: a published protocol on CIFAR-10

Each method runs in its own processes, `pretrain` and `evaluate` as dvc.yaml runs them. What is finished is kept in
--out and not repeated, so that a table can be made in several goes. --cards writes the numbers into docs/methods.
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

from components.methods import METHODS
from components.source_files import digest

ROOT = Path(__file__).parents[1]
MARK = "<!-- measured -->"
LONG = "benchmarks/cifar10_long.yaml"


def stage(name: str, *arguments: str | Path, cwd: Path, threads: int | None = None) -> None:
    """One stage, in a folder that has the params.yaml it is to read."""
    command = [sys.executable, "-m", f"components.stages.{name}", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run(command, cwd=cwd, check=True, env=env)


def measure(method: str, params: dict[str, Any], data: Path, out: Path, threads: int | None) -> dict[str, Any]:
    """Trains and evaluates one method in out/METHOD and returns its row; if that was done before, only reads it.

    Raises ValueError if what is there was made from other photos or settings.
    """
    place = out / method
    result = place / "result.json"
    sections = {name: params["pretrain"].get(name, {}) for name in ("common", method)}
    claim(place, {"made_of": digest(data / "manifest.parquet"), "pretrain": sections, "evaluate": params["evaluate"]})
    if result.is_file():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    started = time.monotonic()
    paths = {name: place / name for name in ("pretrain", "evaluate")}
    stage("pretrain", "--method", method, "--data", data, "--out", paths["pretrain"], cwd=place, threads=threads)
    minutes = (time.monotonic() - started) / 60
    args = ("--backbone", paths["pretrain"], "--data", data, "--out", paths["evaluate"])
    stage("evaluate", *args, cwd=place, threads=threads)
    config, metrics = (
        json.loads((place / name).read_text(encoding="utf-8"))
        for name in ("pretrain/config.json", "evaluate/metrics.json")
    )
    last = (place / "pretrain" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
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


def claim(place: Path, params: dict[str, Any]) -> None:
    """The folder is for these params, which are written there. Raises ValueError if it is another's."""
    text, file = yaml.safe_dump(params, sort_keys=False), place / "params.yaml"
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise ValueError(f"{place} holds results of other pictures or settings; remove it, or give another --out")
    place.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` where it says something, section by section; elsewhere `below`. Another `kind` starts anew."""
    if above.get("kind", below.get("kind")) != below.get("kind"):
        return above
    pairs = {key: (below.get(key), value) for key, value in above.items()}
    both = {key: overlaid(*pair) for key, pair in pairs.items() if all(isinstance(part, dict) for part in pair)}
    return {**below, **above, **both}


def percent(score: dict[str, Any]) -> str:
    """Returns a proportion with its 95 % interval."""
    return f"{score['value']:.1%} ({100 * score['low']:.1f} to {100 * score['high']:.1f})".replace("%", " %")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the floor, then every method in the order given beside its own backbone as it was before training."""
    lines = ["| | kNN top-1 | untrained | linear top-1 | untrained | pictures seen | minutes |", "|---|" + "---|" * 6]
    floor = rows[0]
    lines.append(f"| majority | {percent(floor['majority']['top1'])} | | | | | |")
    lines.append(f"| raw pixels | {percent(floor['pixels']['knn'])} | | {percent(floor['pixels']['linear'])} | | | |")
    for row in rows:
        pairs = [(row["backbone"][name], row["random"][name]["value"]) for name in ("knn", "linear")]
        scores = [f"{percent(score)} | {100 * before:.1f} %" for score, before in pairs]
        lines.append(f"| {row['method']} | {' | '.join(scores)} | {row['pictures']:,} | {row['minutes']} |")
    return "\n".join(lines)


def machine() -> str:
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} {platform.machine()} cores"
    )
    return f"{device}, torch {torch.__version__}"


def write_cards(rows: list[dict[str, Any]], what: str, cards: Path) -> None:
    """Below the mark of each method's card: its own numbers beside the floor."""
    for row in rows:
        card = cards / f"{row['method']}.md"
        if not card.is_file():
            continue  # mocoscriptstyle is on moco's
        before, mark, rest = card.read_text(encoding="utf-8").partition(MARK)
        if not mark:
            raise ValueError(f"{card} has no line {MARK}")
        after = rest[rest.index("\n## ") :] if "\n## " in rest else "\n"
        section = f"{MARK}\n{what} Seed {row['seed']}, {row['epochs']} epochs.\n\n{table([row])}\n"
        card.write_text(before + section + after, encoding="utf-8")


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, help="what differs from params.yaml")
    parser.add_argument("--budget", choices=("short", "long"), default="short", help=f"long: --params {LONG}")
    parser.add_argument("--data", type=Path, help="folder written by prepare; made from --params if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "benchmark")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="all, if not given")
    parser.add_argument("--jobs", type=int, default=1, help="methods at once; each gets its share of the cores")
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of the parameters")
    parser.add_argument("--cards", action="store_true", help="write the numbers into docs/methods")
    args = parser.parse_args()
    named = list(METHODS)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if file := args.params or (ROOT / LONG if args.budget == "long" else None):
        other = yaml.safe_load(file.read_text(encoding="utf-8"))
        params, named = overlaid(params, other), other.get("methods", named)
    names = args.methods or named
    if (folder := ROOT / params["data"]["source"]).is_dir():  # stages run in folders of their own
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
    what = f"Data {Path(params['data']['source']).name}, {machine()}: {command}."
    text = f"{what}\n\n{table(rows)}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    if args.cards:
        write_cards(rows, what, ROOT / "docs" / "methods")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmarks.methods: {error}")
