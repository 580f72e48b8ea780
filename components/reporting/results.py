"""The results that the stages wrote to disk, read once for the page and for the short summary."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # scipy takes a second to load
    from components.evaluation.paired import Comparison


@dataclass(frozen=True)
class Results:
    """Of stages that have not run, `adapter`, `words`, `answering` hold the reason under "skipped", as skipped ones."""

    config: dict[str, Any]  # of prepare
    validation: dict[str, Any]
    rejected: list[dict[str, str]]
    methods: dict[str, dict[str, Any]]  # metrics of evaluate, by method
    logs: dict[str, list[dict[str, float]]]  # lines of pretrain, by method
    measured: dict[str, list[dict[str, Any]]]  # lines of measured.jsonl, by method
    configs: dict[str, dict[str, Any]]  # as pretrain ran, by method
    origins: dict[str, dict[str, Any]]  # of published weights, by the method that used or continued them
    teachers: dict[str, dict[str, Any]]  # of published weights, by the method that distilled them
    starts: dict[str, dict[str, Any]]  # what was kept of the start and the snapshots, by the method that went on
    pending: dict[str, str]  # methods without metrics -> why, and the command that computes them
    adapter: dict[str, Any]
    words: dict[str, Any]  # also `method`, whose backbone was used
    answering: dict[str, Any]
    answers: list[dict[str, Any]]
    embedded: dict[str, Any]  # config of embed, or the reason under "skipped"
    issues: list[dict[str, str]]  # lines of embed's issues.csv
    quality: list[dict[str, str]]  # lines of prepare's issues.csv
    compared: dict[str, list[Comparison]] = field(default_factory=dict)  # see compared.py

    @property
    def scored(self) -> bool:
        """True if there are labels to measure accuracy by."""
        return any("backbone" in metrics for metrics in self.methods.values())

    @property
    def retrieves(self) -> float | None:
        """Returns the MAP@R by class of a random order, None if it was not measured."""
        measured = (map_at_r(metrics.get("backbone", {})) for metrics in self.methods.values())
        return next((score["chance"] for score in measured if score), None)

    def best_method(self) -> str | None:
        """Returns the method with the best kNN accuracy on the photos for selection, never on test.

        The first one where there are no labels; one that has collapsed only if all have. None if none was evaluated.
        """
        return next(iter(self.best_first()), None)

    def best_first(self) -> list[str]:
        """Returns the methods that were evaluated, the best one by `best_method` first."""

        def accuracy(name: str) -> float:
            metrics = self.methods[name]
            if over := metrics.get("seeds", {}).get("selection"):
                return float(over["mean"])
            return float(metrics["selection"]["knn"]["value"]) if "selection" in metrics else 0.0

        return sorted(self.methods, key=lambda name: (not self.collapse(name), accuracy(name)), reverse=True)

    def collapse(self, name: str) -> str | None:
        """Returns how the backbone of a method has collapsed and what to try, None if it has not, or never trained."""
        if not self.configs.get(name, {}).get("epochs", 1):
            return None
        return collapse_verdict(self.methods[name], self.measured.get(name, []), self.starts.get(name))

    def seeds(self, method: str) -> int:
        """Returns with how many seeds a method was measured."""
        return int(self.methods[method].get("seeds", {}).get("count", 1))

    def comparison(self, kind: str, one: str, other: str) -> Comparison | None:
        """Returns the comparison of two methods, or of a method and its baseline, None if there is none."""
        pairs = self.compared.get(kind, [])
        return next((pair for pair in pairs if {pair.first, pair.second} == {one, other}), None)

    def no_better_than_untrained(self) -> list[str]:
        """Returns the methods that this data cannot show to be above the untrained backbone, in kNN nor in linear."""

        def better(name: str, kind: str) -> bool:
            if pair := self.comparison(kind, name, "random"):
                return pair.shown and pair.first == name
            return bool(self.methods[name]["backbone"][kind]["low"] > self.methods[name]["random"][kind]["high"])

        scored = [name for name, metrics in self.methods.items() if "backbone" in metrics]
        return [name for name in scored if not (better(name, "knn") or better(name, "linear"))]

    def learned(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """Returns photos seen and what the features were worth then, by what was measured and by method."""
        curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for name, lines in self.measured.items():
            batch_size = self.configs[name]["batch_size"]
            points = [(line["step"] * batch_size, line["value"]) for line in lines]
            curves.setdefault(lines[0]["measured"], {})[name] = points
        return curves


def collapse_verdict(
    metrics: dict[str, Any], measured: list[dict[str, Any]], start: dict[str, Any] | None
) -> str | None:
    """Returns the verdict on the kept backbone: on its features, or on the run's last point if that is the kept one."""
    last = measured[-1] if measured else {}
    kept_last = not start or start["kept_step"] == last.get("step")
    verdict: str | None = metrics["health"].get("verdict") or (last.get("verdict") if kept_last else None)
    return verdict


def map_at_r(scores: dict[str, Any]) -> dict[str, float] | None:
    """Returns the MAP@R by class of a backbone or baseline, None if it was not measured."""
    by_class: dict[str, Any] = scores.get("retrieval", {}).get("by_class", {})
    return by_class.get("map_at_r")


def read_results(artifacts: Path, methods: list[str]) -> Results:
    """Read the artifacts of every stage that has run. Raises ValueError if prepare has not."""
    logs = {name: read_lines(artifacts / "pretrain" / name / "log.jsonl") for name in methods}
    configs = {name: read_json(artifacts / "pretrain" / name / "config.json") for name in methods}
    origins, teachers = (
        {name: read_json(artifacts / "pretrain" / name / "backbone" / f"{of}.json") for name in methods}
        for of in ("origin", "teacher")
    )
    starts = {name: read_json(artifacts / "pretrain" / name / "start.json") for name in methods}
    measured = {name: read_lines(artifacts / "pretrain" / name / "measured.jsonl") for name in methods}
    metrics = {name: read_json(artifacts / "evaluate" / name / "metrics.json") for name in methods}
    pending = {name: f"not trained yet: dvc repro evaluate@{name}" for name in methods if not configs[name]}
    pending |= {n: f"not evaluated yet: dvc repro evaluate@{n}" for n in methods if configs[n] and not metrics[n]}
    if not (config := read_json(artifacts / "prepare" / "config.json")):
        raise ValueError(f"{artifacts / 'prepare' / 'config.json'} is missing; run the first stage: dvc repro prepare")
    return Results(
        config=config,
        validation=read_json(artifacts / "prepare" / "validation.json"),
        rejected=read_lines(artifacts / "prepare" / "rejected.jsonl"),
        methods={name: metrics[name] for name in methods if name not in pending},
        logs={name: lines for name, lines in logs.items() if lines},
        measured={name: lines for name, lines in measured.items() if lines},
        configs={name: config for name, config in configs.items() if config},
        origins={name: origin for name, origin in origins.items() if origin},
        teachers={name: teacher for name, teacher in teachers.items() if teacher},
        starts={name: start for name, start in starts.items() if start},
        pending=pending,
        adapter=read_json(artifacts / "adapt" / "metrics.json") or {"skipped": "not run yet: dvc repro adapt"},
        words=_words(artifacts / "words"),
        answering=read_json(artifacts / "answer" / "metrics.json") or {"skipped": "not run yet: dvc repro answer"},
        answers=read_lines(artifacts / "answer" / "answers.jsonl"),
        embedded=read_json(artifacts / "embed" / "config.json") or {"skipped": "not run yet: dvc repro embed"},
        issues=_table(artifacts / "embed" / "issues.csv"),
        quality=_table(artifacts / "prepare" / "issues.csv"),
    )


def _words(folder: Path) -> dict[str, Any]:
    if not (metrics := read_json(folder / "metrics.json")):
        return {"skipped": "not run yet: dvc repro words"}
    return {"method": read_json(folder / "config.json").get("method"), **metrics}


def read_json(path: Path) -> dict[str, Any]:
    """Returns what the file holds, {} if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of the file, [] if there is none: a skipped stage writes none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by column, [] if there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
