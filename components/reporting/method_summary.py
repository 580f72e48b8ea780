"""One backbone and its numbers as a short text for a terminal."""

from __future__ import annotations

from pathlib import Path

from components.reporting.formats import over_seeds, percent
from components.reporting.results import collapse_verdict, read_json, read_lines


def method_summary(artifacts: Path, method: str) -> str:
    """Returns the path of one backbone and its numbers, as lines for a terminal. Raises ValueError if untrained."""
    backbone = artifacts / "pretrain" / method / "backbone"
    if not backbone.is_dir():
        raise ValueError(f"{backbone} is missing; run: dvc repro pretrain@{method}")
    lines = [f"backbone: {backbone}"]
    metrics = read_json(artifacts / "evaluate" / method / "metrics.json")
    if not metrics:
        return "\n".join([*lines, f"not evaluated yet; run: dvc repro evaluate@{method}"])
    for kind, name in (("knn", "kNN top-1"), ("linear", "linear top-1")) if "backbone" in metrics else ():
        trained, untrained = (percent(metrics[source][kind]) for source in ("backbone", "random"))
        seeds = over_seeds(metrics.get("seeds", {}), kind, "; ")
        lines.append(
            f"{name}: {trained} of {metrics['backbone'][kind]['of']:,} test photos{seeds}; untrained: {untrained}"
        )
    if (other := metrics.get("snapshot")) and "backbone" in other:
        seeds = over_seeds(other.get("seeds", {}), "knn", "; ")
        lines.append(f"{other['name']} (step {other['step']:,}): kNN top-1 {percent(other['backbone']['knn'])}{seeds}")
    lines += [f"not measured: {reason}" for reason in metrics.get("not_measured", {}).values()]
    health = metrics["health"]
    lines.append(f"effective rank: {health['effective_rank']:.0f} of {health['dimensions']}")
    measured, start = read_lines(backbone.parent / "measured.jsonl"), read_json(backbone.parent / "start.json")
    return "\n".join([*lines, *filter(None, [collapse_verdict(metrics, measured, start)])])
