"""What backbones are good for: each use of the project measured with each backbone, in one table.

    python -m benchmarks.uses                                      # published and simclr of artifacts/, all uses
    python -m benchmarks.uses --artifacts … --backbones published simclr --out … --skip answer

The backbones and their photos are those that pretrain and prepare wrote in --artifacts. Each cell is a stage in a
process of its own, with the settings of params.yaml; what is finished is in --out and is not repeated.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.methods import ROOT, claim, machine, percent, stage

Metrics = dict[str, dict[str, Any]]  # by stage
CELLS = {  # stage and the settings that differ from params.yaml, by the name of the folder
    "evaluate": ("evaluate", {}),
    "adapt": ("adapt", {"kind": "linear"}),
    "full": ("adapt", {"kind": "full"}),
    "words": ("words", {}),
    "connect": ("connect", {}),
    "answer": ("answer", {}),
}


def _recall(metrics: Metrics, by: str) -> str | None:
    scores = metrics["evaluate"]["backbone"]["retrieval"].get(by)
    return scores and f"{percent(scores['1'])}; by chance {100 * scores['1']['chance']:.0f} %"


def _map_at_r(metrics: Metrics, by: str) -> str | None:
    scores = metrics["evaluate"]["backbone"]["retrieval"].get(by)
    return scores and f"{percent(scores['map_at_r'])}; by chance {100 * scores['map_at_r']['chance']:.0f} %"


def _few(metrics: Metrics) -> str | None:
    few_labels = metrics["adapt"]["few_labels"]
    return " · ".join(f"{100 * accuracies['linear']['mean']:.1f}" for accuracies in few_labels.values()) + " %"


def _full(metrics: Metrics) -> str | None:
    full, difference = metrics["full"], metrics["full"]["above_linear"]
    points = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**{k: 100 * v for k, v in difference.items()})
    return f"{percent(full['accuracy'])}; {points} points above linear"


def _zero_shot(metrics: Metrics) -> str | None:
    scores = metrics["words"].get("zero_shot")
    return scores and f"{percent(scores['top1'])}; most frequent class {100 * scores['majority']['value']:.0f} %"


def _by_caption(metrics: Metrics) -> str | None:
    scores = metrics["words"].get("retrieval", {}).get("text_to_photo", {}).get("5")
    return scores and f"{percent(scores)}; by chance {100 * scores['chance']:.0f} %"


def _answers(metrics: Metrics) -> str | None:
    answers = metrics["answer"]
    return f"{percent(answers['exact_match'])}; without the photo {100 * answers['blind']['value']:.0f} %"


ROWS: dict[str, tuple[str, Callable[[Metrics], str | None]]] = {
    "class by its neighbors (`evaluate`, kNN)": (
        "evaluate",
        lambda metrics: percent(metrics["evaluate"]["backbone"]["knn"]),
    ),
    "the most similar photo is of the same class": ("evaluate", lambda metrics: _recall(metrics, "by_class")),
    "all photos of the class come first (mAP@R)": ("evaluate", lambda metrics: _map_at_r(metrics, "by_class")),
    "the most similar photo has the same caption": ("evaluate", lambda metrics: _recall(metrics, "by_caption")),
    "class by an adapter (`adapt`, linear)": ("adapt", lambda metrics: percent(metrics["adapt"]["accuracy"])),
    "the same with 1 · 5 · 10 labels a class": ("adapt", _few),
    "class after fine-tuning (`adapt`, full)": ("full", _full),
    "class by its name (`words`)": ("words", _zero_shot),
    "a photo by its caption, among the best 5 (`words`)": ("words", _by_caption),
    "short questions answered right (`connect`, `answer`)": ("answer", _answers),
}


def measure(method: str, name: str, params: dict[str, Any], artifacts: Path, out: Path) -> dict[str, Any]:
    """Runs one stage on the backbone of a method. Returns its metrics, from `out` if they are there."""
    stage_name, settings = CELLS[name]
    folder = out / method / name
    section = {**params[stage_name], **settings, **({"method": method} if "method" in params[stage_name] else {})}
    claim(folder, {stage_name: section})
    result = folder / "out" / "metrics.json"
    marker = folder / "done"
    if not marker.is_file():
        inputs = ("--backbone", artifacts / "pretrain" / method)
        if stage_name == "answer":
            inputs = ("--model", out / method / "connect" / "out")
        stage(stage_name, *inputs, "--data", artifacts / "prepare", "--out", folder / "out", cwd=folder)
        marker.touch()
    return dict(json.loads(result.read_text(encoding="utf-8"))) if result.is_file() else {}


def table(metrics: dict[str, Metrics]) -> str:
    """Returns a Markdown table: a row for each use, a column for each backbone. A dash: skipped, or not measured."""
    lines = [f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for use, (cell, score) in ROWS.items():
        cells = []
        for method_metrics in metrics.values():
            has_score = (
                cell in method_metrics
                and "skipped" not in method_metrics[cell]
                and "not_measured" not in method_metrics.get("evaluate", {})
            )
            cells.append((has_score and score(method_metrics)) or "–")
        if set(cells) != {"–"}:
            lines.append(f"| {use} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="the settings of the stages")
    parser.add_argument("--backbones", nargs="+", default=["published", "simclr"], metavar="METHOD")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "uses")
    args = parser.parse_args()
    params = yaml.safe_load(args.params.read_text(encoding="utf-8"))
    artifacts, out = args.artifacts.resolve(), args.out.resolve()
    if missing := [name for name in args.backbones if not (artifacts / "pretrain" / name / "backbone").is_dir()]:
        raise ValueError(f"{artifacts / 'pretrain'} has no backbone of {', '.join(missing)}")
    metrics = {
        method: {name: measure(method, name, params, artifacts, out) for name in CELLS if name not in args.skip}
        for method in args.backbones
    }
    print(f"{machine()}\n\n{table(metrics)}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmarks.uses: {error}")
