"""What the stages left on disk, gathered once for the page and for the short summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINES = {
    "majority": "always the commonest class",
    "pixels": "raw pixels, no network",
    "random": "the same backbone, untrained",
}


@dataclass(frozen=True)
class Findings:
    """methods: evaluate's metrics by method; logs: pretrain's lines by method; configs: what ran, by method."""

    config: dict[str, Any]
    validation: dict[str, Any]
    rejected: list[dict[str, str]]
    methods: dict[str, dict[str, Any]]
    logs: dict[str, list[dict[str, float]]]
    configs: dict[str, dict[str, Any]]
    adapter: dict[str, Any]
    connector: dict[str, Any]
    answering: dict[str, Any]
    answers: list[dict[str, Any]]

    @property
    def scored(self) -> bool:
        return any("backbone" in metrics for metrics in self.methods.values())

    def best(self) -> str:
        """The method with the best kNN; the first one where nothing could be scored."""
        return max(self.methods, key=lambda name: _top1(self.methods[name], "backbone", "knn") or 0.0)

    def floors(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """A baseline once for all methods, or once for those it is alike for: (" as in …", or "" for all; scores)."""
        alike: list[tuple[list[str], dict[str, Any]]] = []
        for method, metrics in self.methods.items():
            if name not in metrics:
                continue
            names = next((names for names, said in alike if said == metrics[name]), None)
            if names is None:
                alike.append(([method], metrics[name]))
            else:
                names.append(method)
        return [("" if len(alike) == 1 else f" as in {', '.join(names)}", said) for names, said in alike]

    def unlearned(self) -> list[str]:
        """Methods whose backbone is clearly better than untrained by neither measure: the intervals overlap."""

        def better(metrics: dict[str, Any], kind: str) -> bool:
            return bool(metrics["backbone"][kind]["low"] > metrics["random"][kind]["high"])

        scored = {name: metrics for name, metrics in self.methods.items() if "backbone" in metrics}
        return [name for name, metrics in scored.items() if not (better(metrics, "knn") or better(metrics, "linear"))]

    def table(self) -> list[dict[str, Any]]:
        """A row for each baseline and each method: name, words, knn, linear (share dicts or None), health, blocks."""
        rows: list[dict[str, Any]] = []
        if self.scored:
            for name, words in BASELINES.items():
                for like, said in self.floors(name):
                    top1 = said.get("top1")
                    scores = {"knn": top1 or said["knn"], "linear": top1 or said["linear"]}
                    rows.append({"name": name + like, "words": words, **scores})
        for name, metrics in self.methods.items():
            said = metrics.get("backbone", {})
            log, config = self.logs[name], self.configs[name]
            seen = int(log[-1]["step"]) * config["batch_size"]
            rows.append(
                {
                    "name": name,
                    "words": f"{config['epochs']} epoch{'s' * (config['epochs'] != 1)}, {seen:,} pictures seen",
                    "knn": said.get("knn"),
                    "linear": said.get("linear"),
                    "health": metrics["health"],
                    "blocks": metrics.get("blocks", []),
                    "method": True,
                }
            )
        return rows


def gather(artifacts: Path, methods: list[str]) -> Findings:
    """Read the artifacts of every stage. Raises ValueError naming the first file that is missing."""
    return Findings(
        config=_json(artifacts / "prepare" / "config.json"),
        validation=_json(artifacts / "prepare" / "validation.json"),
        rejected=_lines(artifacts / "prepare" / "rejected.jsonl"),
        methods={name: _json(artifacts / "evaluate" / name / "metrics.json") for name in methods},
        logs={name: _lines(artifacts / "pretrain" / name / "log.jsonl") for name in methods},
        configs={name: _json(artifacts / "pretrain" / name / "config.json") for name in methods},
        adapter=_json(artifacts / "adapt" / "metrics.json"),
        connector=_json(artifacts / "connect" / "metrics.json"),
        answering=_json(artifacts / "answer" / "metrics.json"),
        answers=_lines(artifacts / "answer" / "answers.jsonl"),
    )


def summary(findings: Findings) -> str:
    """The table of methods and the two numbers after it, as Markdown."""
    lines = ["| | kNN top-1 | linear top-1 | effective rank |", "|---|---|---|---|"]
    for row in findings.table():
        rank = f"{row['health']['effective_rank']:.0f} of {row['health']['dimensions']}" if "health" in row else ""
        lines.append(f"| {row['name']} | {said(row['knn'])} | {said(row['linear'])} | {rank} |")
    lines.append("")
    adapter, answering = findings.adapter, findings.answering
    lines.append(f"adapter: {adapter.get('skipped') or said(adapter.get('accuracy'))}")
    if "skipped" in answering:
        lines.append(f"answers: {answering['skipped']}")
    else:
        lines.append(f"answers: {said(answering.get('exact_match'))} right, blind {said(answering.get('blind'))}")
        if gap := answering.get("gap"):  # with one picture there is none to exchange it with
            costs = f"{gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f}) nats"
            lines[-1] += f"; a shuffled picture costs {costs}"
    return "\n".join(lines) + "\n"


def said(share: dict[str, float] | None) -> str:
    """A share with its interval, in percent; a dash where it was not measured."""
    if share is None:
        return "–"
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def _top1(metrics: dict[str, Any], who: str, kind: str) -> float | None:
    found = metrics.get(who, {}).get(kind)
    return found["value"] if found else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; run its stage first (dvc repro runs what is missing)")
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []  # a skipped stage writes none
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
