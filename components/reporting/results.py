"""The results that the stages wrote to disk, read once for the page and for the short summary."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # scipy takes a second to load
    from components.evaluation.paired import Comparison

BASELINES = {
    "majority": "always the most frequent class",
    "pixels": "raw pixels, no network",
    "random": "the same backbone, untrained",
}


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
        measured = (_map_at_r(metrics.get("backbone", {})) for metrics in self.methods.values())
        return next((found["chance"] for found in measured if found), None)

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
        return _collapse(self.methods[name], self.measured.get(name, []), self.starts.get(name))

    def baseline(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Returns the distinct scores of a baseline, each with a suffix for its name: see `distinct`."""
        return distinct({method: metrics[name] for method, metrics in self.methods.items() if name in metrics})

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

    def _words(self, name: str) -> str:
        """Returns what a method did: how long it trained, from which published weights if any, if it has collapsed."""
        return "; ".join(filter(None, [self._trained(name), self.collapse(name)]))

    def _trained(self, name: str) -> str:
        config, origin, teacher = self.configs[name], self.origins.get(name), self.teachers.get(name)
        if not config["epochs"]:
            return f"as published: {_described(origin)}" if origin else "untrained"
        seen = int(self.logs[name][-1]["step"]) * config["batch_size"]
        words = f"{config['epochs']} epoch{'s' * (config['epochs'] != 1)}, {seen:,} photos seen"
        if teacher:
            words = f"{words}, distilled from {_described(teacher)}"
        if not origin:
            return words
        words = f"{words}, from {origin['source']}"
        if kept := self.starts.get(name):
            step = int(kept["kept_step"])
            words += f", kept after step {step:,}" if step else ", the start was kept: no later point was better"
        verdict = self.methods[name].get("against_start", {}).get("verdict")
        return words + (f": {verdict}" if verdict else "")

    def table(self) -> list[dict[str, Any]]:
        """Returns a row for each baseline, each evaluated method and each pending one.

        name, words, knn, linear (proportions with intervals, or None), map_at_r (by class); of methods also health,
        blocks and seeds.
        """
        rows: list[dict[str, Any]] = []
        if self.scored:
            for name, words in BASELINES.items():
                for suffix, scores in self.baseline(name):
                    top1 = scores.get("top1")
                    knn, linear = top1 or scores["knn"], top1 or scores["linear"]
                    row = {"name": name + suffix, "words": words, "knn": knn, "linear": linear}
                    rows.append({**row, "map_at_r": _map_at_r(scores)})
        for name, metrics in self.methods.items():
            scores = metrics.get("backbone", {})
            rows.append(
                {
                    "name": name,
                    "words": self._words(name),
                    "knn": scores.get("knn"),
                    "linear": scores.get("linear"),
                    "map_at_r": _map_at_r(scores),
                    "health": metrics["health"],
                    "blocks": metrics.get("blocks", []),
                    "seeds": metrics.get("seeds", {}),
                }
            )
            if other := metrics.get("snapshot"):
                rows.append(_snapshot_row(name, other))
        return rows + [{"name": name, "words": why, "knn": None, "linear": None} for name, why in self.pending.items()]


def distinct(scores: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the distinct ones of a baseline's scores, given by method, each with a suffix for the baseline's name.

    The suffix is " as in METHODS" where methods differ (a random backbone of another shape), "" where all agree.
    """
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for method, own in scores.items():
        names = next((names for names, others in groups if others == own), None)
        if names is None:
            groups.append(([method], own))
        else:
            names.append(method)
    return [("" if len(groups) == 1 else f" as in {', '.join(names)}", own) for names, own in groups]


def _collapse(metrics: dict[str, Any], measured: list[dict[str, Any]], start: dict[str, Any] | None) -> str | None:
    """Returns the verdict on the kept backbone: on its features, or on the run's last point if that is the kept one."""
    last = measured[-1] if measured else {}
    kept_last = not start or start["kept_step"] == last.get("step")
    verdict: str | None = metrics["health"].get("verdict") or (last.get("verdict") if kept_last else None)
    return verdict


def _snapshot_row(name: str, other: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of the table for the best snapshot of a run that kept the last, or the other way round."""
    scores = other.get("backbone", {})
    words = f"step {other['step']:,}; the best one is chosen by {other['chosen_by']}"
    measured = {kind: scores.get(kind) for kind in ("knn", "linear")}
    row = {"name": f"{name}, {other['name']}", "words": words, **measured, "map_at_r": _map_at_r(scores)}
    return {**row, "health": other["health"]}


def _map_at_r(scores: dict[str, Any]) -> dict[str, float] | None:
    """Returns the MAP@R by class of a backbone or baseline, None if it was not measured."""
    found: dict[str, Any] = scores.get("retrieval", {}).get("by_class", {})
    return found.get("map_at_r")


def _described(origin: dict[str, Any]) -> str:
    """Returns what published weights are: their name and revision, what they were trained on, and their license."""
    revision = f" ({origin['revision']})" if origin["revision"] else ""
    return f"{origin['source']}{revision}, trained on: {origin['trained_on']}, license: {origin['license']}"


def read_results(artifacts: Path, methods: list[str]) -> Results:
    """Read the artifacts of every stage that has run. Raises ValueError if prepare has not."""
    logs = {name: _lines(artifacts / "pretrain" / name / "log.jsonl") for name in methods}
    configs = {name: _json(artifacts / "pretrain" / name / "config.json") for name in methods}
    origins, teachers = (
        {name: _json(artifacts / "pretrain" / name / "backbone" / f"{of}.json") for name in methods}
        for of in ("origin", "teacher")
    )
    starts = {name: _json(artifacts / "pretrain" / name / "start.json") for name in methods}
    measured = {name: _lines(artifacts / "pretrain" / name / "measured.jsonl") for name in methods}
    metrics = {name: _json(artifacts / "evaluate" / name / "metrics.json") for name in methods}
    pending = {name: f"not trained yet: dvc repro evaluate@{name}" for name in methods if not configs[name]}
    pending |= {n: f"not evaluated yet: dvc repro evaluate@{n}" for n in methods if configs[n] and not metrics[n]}
    if not (config := _json(artifacts / "prepare" / "config.json")):
        raise ValueError(f"{artifacts / 'prepare' / 'config.json'} is missing; run the first stage: dvc repro prepare")
    return Results(
        config=config,
        validation=_json(artifacts / "prepare" / "validation.json"),
        rejected=_lines(artifacts / "prepare" / "rejected.jsonl"),
        methods={name: metrics[name] for name in methods if name not in pending},
        logs={name: lines for name, lines in logs.items() if lines},
        measured={name: lines for name, lines in measured.items() if lines},
        configs={name: config for name, config in configs.items() if config},
        origins={name: origin for name, origin in origins.items() if origin},
        teachers={name: teacher for name, teacher in teachers.items() if teacher},
        starts={name: start for name, start in starts.items() if start},
        pending=pending,
        adapter=_json(artifacts / "adapt" / "metrics.json") or {"skipped": "not run yet: dvc repro adapt"},
        words=_words(artifacts / "words"),
        answering=_json(artifacts / "answer" / "metrics.json") or {"skipped": "not run yet: dvc repro answer"},
        answers=_lines(artifacts / "answer" / "answers.jsonl"),
        embedded=_json(artifacts / "embed" / "config.json") or {"skipped": "not run yet: dvc repro embed"},
        issues=_table(artifacts / "embed" / "issues.csv"),
        quality=_table(artifacts / "prepare" / "issues.csv"),
    )


def _words(folder: Path) -> dict[str, Any]:
    if not (metrics := _json(folder / "metrics.json")):
        return {"skipped": "not run yet: dvc repro words"}
    return {"method": _json(folder / "config.json").get("method"), **metrics}


def method_summary(artifacts: Path, method: str) -> str:
    """Returns the path of one backbone and its numbers, as lines for a terminal. Raises ValueError if untrained."""
    backbone = artifacts / "pretrain" / method / "backbone"
    if not backbone.is_dir():
        raise ValueError(f"{backbone} is missing; run: dvc repro pretrain@{method}")
    lines = [f"backbone: {backbone}"]
    metrics = _json(artifacts / "evaluate" / method / "metrics.json")
    if not metrics:
        return "\n".join([*lines, f"not evaluated yet; run: dvc repro evaluate@{method}"])
    for kind, name in (("knn", "kNN top-1"), ("linear", "linear top-1")) if "backbone" in metrics else ():
        trained, untrained = (percent(metrics[source][kind]) for source in ("backbone", "random"))
        seeds = over_seeds(metrics.get("seeds", {}), kind, "; ")
        lines.append(
            f"{name}: {trained} of {metrics['backbone'][kind]['of']:,} test photos{seeds}; untrained: {untrained}"
        )
    if (other := metrics.get("snapshot")) and "backbone" in other:
        lines.append(f"{other['name']} (step {other['step']:,}): kNN top-1 {percent(other['backbone']['knn'])}")
    lines += [f"not measured: {reason}" for reason in metrics.get("not_measured", {}).values()]
    health = metrics["health"]
    lines.append(f"effective rank: {health['effective_rank']:.0f} of {health['dimensions']}")
    measured, start = _lines(backbone.parent / "measured.jsonl"), _json(backbone.parent / "start.json")
    return "\n".join([*lines, *filter(None, [_collapse(metrics, measured, start)])])


def percent(proportion: dict[str, float] | None) -> str:
    """Returns a proportion and its 95 % interval in percent; a dash for None."""
    if proportion is None:
        return "–"
    value, low, high = (100 * proportion[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def over_seeds(seeds: dict[str, Any], kind: str, before: str = "") -> str:
    """Returns mean and standard deviation over seeds in percent; "" for one seed. before: text in front of them."""
    if seeds.get("count", 1) == 1 or kind not in seeds:
        return ""
    mean, deviation = (100 * seeds[kind][key] for key in ("mean", "deviation"))
    return f"{before}{seeds['count']} seeds: {mean:.1f} ± {deviation:.1f}"


def _json(path: Path) -> dict[str, Any]:
    """Returns what the file holds, {} if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of the file, [] if there is none: a skipped stage writes none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by column, [] if there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
