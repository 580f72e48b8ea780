"""Study (c): SimCLR's head, which is trained and then thrown away."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import (
    Section,
    above,
    accuracies,
    bare,
    compared,
    counted,
    legend,
    listed,
    paired_bars,
    spread,
)

HEADS = {"none": "no head", "linear": "one linear layer", "v1": "two layers (v1)", "v2": "three layers (v2)"}


def study(runner: Runner) -> Section:
    cells = [runner.cell("simclr", {"head": head}, seed=seed) for head in HEADS for seed in range(runner.seeds)]
    runs = runner.measure(cells)
    by_head = {head: runs[i * runner.seeds : (i + 1) * runner.seeds] for i, head in enumerate(HEADS)}
    rows = [["head", "linear, before the head", "after it", "kNN, before", "after"]]
    for head, results in by_head.items():
        scores = [spread(values) for kind in ("linear", "knn") for values in _before_and_after(results, kind)]
        rows.append([HEADS[head], *scores])
    return Section(
        "heads",
        "SimCLR's head",
        "A head of two layers stands between the features and the loss. The features before it are 3 points better "
        "than with a linear head, more than 10 points better than without a head, and more than 10 points better than "
        "the features after it: the head may drop what the loss does not need, such as color (figure 8, section 4.2).",
        _seen(by_head),
        rows,
        _figure(by_head),
        f"Scenes, the ViT of the ladder, {epochs(cells[0])} epochs; {counted(runner.seeds)}",
    )


def _before_and_after(results: list[Result], kind: str) -> tuple[list[float], list[float]]:
    return accuracies(results, kind), [100 * result["others"]["head"][kind]["value"] for result in results]


def _seen(by_head: dict[str, list[Result]]) -> str:
    return " ".join(_sentence(by_head, kind, name) for kind, name in (("linear", "a linear probe"), ("knn", "kNN")))


def _sentence(by_head: dict[str, list[Result]], kind: str, name: str) -> str:
    before, after = _before_and_after(by_head["v1"], kind)
    references = {
        "features without a head": accuracies(by_head["none"], kind),
        "those before a linear head": accuracies(by_head["linear"], kind),
        "those after it": after,
    }
    texts = [compared(before, values, reference) for reference, values in references.items()]
    agree = sum(above(before, values) for values in references.values())
    verdict = f"{agree} of 3 as in the paper"
    if agree in (0, 3):
        verdict = "as in the paper" if agree else "unlike the paper in all three"
    return f"By {name}, features before the two-layer head are {listed(texts)}: {verdict}."


def _figure(by_head: dict[str, list[Result]]) -> Figure:
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axis: Any = figure.add_subplot()
    before, after = zip(*[_before_and_after(results, "linear") for results in by_head.values()], strict=True)
    paired_bars(axis, list(HEADS.values()), {"before the head": list(before), "after the head": list(after)})
    legend(axis)
    bare(axis, "", "linear probe on test, %")
    return figure
