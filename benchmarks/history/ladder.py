"""Study (a): context prediction, MoCo, SimCLR and DINO on the same photos, between pixels and labels."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import (
    TITLES,
    Section,
    above,
    accuracies,
    bare,
    beyond_seeds,
    counted,
    legend,
    listed,
    paired_bars,
    spread,
)

# year, and accuracy on ImageNet by a linear probe of a ResNet-50, in per cent; context prediction as measured again
# by Kolesnikov et al. 2019 (https://arxiv.org/abs/1901.09005), with a wider one
LADDER = {"contextprediction": (2015, 51), "moco": (2019, 61), "simclr": (2020, 69), "dino": (2021, 75)}
EPOCHS = 5


def study(runner: Runner) -> Section:
    names, seeds = [*LADDER, "supervised"], range(runner.seeds)
    cells = [runner.cell(name, {"epochs": EPOCHS}, seed=seed) for name in names for seed in seeds]
    untrained = [runner.cell("simclr", {"epochs": 0}, seed=seed) for seed in seeds]
    published = [runner.cell("published")]
    results = runner.measure([*cells, *untrained, *published])
    same_pictures = {name: results[i * runner.seeds : (i + 1) * runner.seeds] for i, name in enumerate(names)}
    floor, start = results[len(cells) : -1], results[-1]
    same_minutes = _same_minutes(runner, same_pictures)
    rows = _table(same_pictures, same_minutes, floor, start)
    return Section(
        "ladder",
        "The ladder: context prediction, MoCo, SimCLR, DINO",
        "On ImageNet each method was better than the one before it: "
        + ", ".join(f"{TITLES[name]} ({year}) {accuracy} %" for name, (year, accuracy) in LADDER.items())
        + ". These are linear probes on a ResNet-50 that was trained for days. The first number was measured in 2019, "
        "with a wider network.",
        _seen(same_pictures, same_minutes, floor),
        rows,
        _figure(same_pictures, same_minutes, floor, start),
        f"8,000 generated scenes of 64 pixels, a ViT with 0.6 million parameters; {counted(runner.seeds)}",
    )


def _same_minutes(runner: Runner, same_pictures: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Returns runs as long as SimCLR's, in seconds of one core."""
    seconds = {name: mean(result["cpu_seconds"] for result in runs) for name, runs in same_pictures.items()}
    longer = {name: max(1, round(EPOCHS * seconds["simclr"] / spent)) for name, spent in seconds.items()}
    cells = {
        name: [runner.cell(name, {"epochs": epochs}, seed=seed) for seed in range(runner.seeds)]
        for name, epochs in longer.items()
    }
    results = iter(runner.measure([cell for some in cells.values() for cell in some]))
    return {name: [next(results) for _ in some] for name, some in cells.items()}


def _table(
    pictures: dict[str, list[Result]], minutes: dict[str, list[Result]], floor: list[Result], start: Result
) -> list[list[str]]:
    rows = [["", "kNN, same pictures", "linear", "kNN, same minutes", "linear", "pictures seen", "minutes of one core"]]
    of = floor[0]["majority"]["of"]
    rows.append(
        [f"most frequent class (of {of:,} test photos)", *[f"{100 * floor[0]['majority']['value']:.1f}"] * 4, "", ""]
    )
    rows.append(["raw pixels", *_scores([{"test": floor[0]["pixels"]}]) * 2, "", ""])
    rows.append(["untrained", *_scores(floor) * 2, "0", "0"])
    for name, runs in pictures.items():
        longer = minutes[name]
        took = mean(run["cpu_seconds"] for run in longer) / 60
        seen = f"{runs[0]['pictures']:,} · {longer[0]['pictures']:,}"
        rows.append([TITLES[name], *_scores(runs), *_scores(longer), seen, f"{took:.1f}"])
    rows.append(["published (EfficientNet-Lite0, ImageNet's labels)", *_scores([start]) * 2, "", ""])
    return rows


def _scores(runs: list[Result]) -> list[str]:
    return [spread(accuracies(runs, kind)) for kind in ("knn", "linear")]


def _seen(pictures: dict[str, list[Result]], minutes: dict[str, list[Result]], floor: list[Result]) -> str:
    names = list(LADDER)
    linear = {name: accuracies(runs, "linear") for name, runs in pictures.items()}
    order = sorted(names, key=lambda name: mean(linear[name]))
    same = "is that of ImageNet" if order == names else "differs from that on ImageNet"
    ties = [f"{TITLES[a]} from {TITLES[b]}" for a, b in pairwise(order) if not beyond_seeds(linear[a], linear[b])]
    tied = f" {len(floor)} seeds cannot tell {listed(ties, 'or')}." if ties else ""
    low = accuracies(floor, "linear")
    better = [TITLES[name] for name in names if above(linear[name], low)]
    those = (
        "All four are" if len(better) == len(names) else f"{listed(better) or 'None'} {'are' if better[1:] else 'is'}"
    )
    longer = {name: accuracies(runs, "linear") for name, runs in minutes.items() if name in LADDER}
    best = max(longer, key=lambda name: mean(longer[name]))
    return (
        f"After the same number of pictures the order, by a linear probe, {same}: "
        f"{' < '.join(TITLES[name] for name in order)}.{tied} {those} above the untrained network. "
        f"After the same minutes of training, {TITLES[best]} is the best ({mean(longer[best]):.1f} %). Training with "
        f"labels reaches {mean(linear['supervised']):.1f} %. Small networks trained for minutes do not decide what "
        "large ones learn in days: these numbers show what the methods give on a small budget."
    )


def _figure(
    pictures: dict[str, list[Result]], minutes: dict[str, list[Result]], floor: list[Result], start: Result
) -> Figure:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axis: Any = figure.add_subplot()
    both = (("same pictures", pictures), ("same minutes", minutes))
    values = {label: [accuracies(some, "linear") for some in runs.values()] for label, runs in both}
    paired_bars(axis, [TITLES[name] for name in pictures], values)
    lines = (
        ("pixels", accuracies([{"test": floor[0]["pixels"]}], "linear")),
        ("untrained", accuracies(floor, "linear")),
        ("published", accuracies([start], "linear")),
    )
    for (name, value), style in zip(lines, (":", "--", "-."), strict=True):
        axis.axhline(mean(value), color="#555555", linestyle=style, linewidth=1, label=name)
    legend(axis)
    bare(axis, "", "linear probe on test, %")
    return figure
