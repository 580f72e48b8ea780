"""The rows of the table of results: baselines, methods and their snapshots, and methods without results yet."""

from __future__ import annotations

from typing import Any

from components.reporting.results import Results, map_at_r

BASELINES = {
    "majority": "always the most frequent class",
    "pixels": "raw pixels, no network",
    "random": "the same backbone, untrained",
}


def table_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a row for each baseline, each evaluated method and each pending one.

    name, words, knn, linear (proportions with intervals, or None), map_at_r (by class); of methods also health,
    blocks and seeds.
    """
    table: list[dict[str, Any]] = []
    if results.scored:
        for name, words in BASELINES.items():
            for suffix, scores in _baseline(results, name):
                top1 = scores.get("top1")
                knn, linear = top1 or scores["knn"], top1 or scores["linear"]
                row = {"name": name + suffix, "words": words, "knn": knn, "linear": linear}
                table.append({**row, "map_at_r": map_at_r(scores)})
    for name, metrics in results.methods.items():
        scores = metrics.get("backbone", {})
        table.append(
            {
                "name": name,
                "words": _words(results, name),
                "knn": scores.get("knn"),
                "linear": scores.get("linear"),
                "map_at_r": map_at_r(scores),
                "health": metrics["health"],
                "blocks": metrics.get("blocks", []),
                "seeds": metrics.get("seeds", {}),
            }
        )
        if other := metrics.get("snapshot"):
            table.append(_snapshot_row(name, other))
    return table + [{"name": name, "words": why, "knn": None, "linear": None} for name, why in results.pending.items()]


def _baseline(results: Results, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the distinct scores of a baseline, each with a suffix for its name: see `distinct`."""
    return distinct({method: metrics[name] for method, metrics in results.methods.items() if name in metrics})


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


def _words(results: Results, name: str) -> str:
    """Returns what a method did: how long it trained, from which published weights if any, if it has collapsed."""
    return "; ".join(filter(None, [_trained(results, name), results.collapse(name)]))


def _trained(results: Results, name: str) -> str:
    config, origin, teacher = results.configs[name], results.origins.get(name), results.teachers.get(name)
    if not config["epochs"]:
        return f"as published: {_described(origin)}" if origin else "untrained"
    seen = int(results.logs[name][-1]["step"]) * config["batch_size"]
    words = f"{config['epochs']} epoch{'s' * (config['epochs'] != 1)}, {seen:,} photos seen"
    if teacher:
        words = f"{words}, distilled from {_described(teacher)}"
    if not origin:
        return words
    words = f"{words}, from {origin['source']}"
    if kept := results.starts.get(name):
        step = int(kept["kept_step"])
        words += f", kept after step {step:,}" if step else ", the start was kept: no later point was better"
    verdict = results.methods[name].get("against_start", {}).get("verdict")
    return words + (f": {verdict}" if verdict else "")


def _snapshot_row(name: str, other: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of the snapshot that a run has not kept: the best one if it kept the last, or the reverse."""
    scores = other.get("backbone", {})
    seeds = other.get("seeds", {})
    step = f"step {other['step']:,}" + " of the first seed" * (seeds.get("count", 1) > 1)
    words = f"{step}; the best one is chosen by {other['chosen_by']}"
    measured = {kind: scores.get(kind) for kind in ("knn", "linear")}
    row = {"name": f"{name}, {other['name']}", "words": words, **measured, "map_at_r": map_at_r(scores)}
    return {**row, "health": other["health"], "seeds": seeds}


def _described(origin: dict[str, Any]) -> str:
    """Returns what published weights are: their name and revision, what they were trained on, and their license."""
    revision = f" ({origin['revision']})" if origin["revision"] else ""
    return f"{origin['source']}{revision}, trained on: {origin['trained_on']}, license: {origin['license']}"
