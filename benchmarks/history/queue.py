"""Study (d): the length of MoCo's queue and the momentum of its key encoder."""

from __future__ import annotations

from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import (
    COLORS,
    Section,
    above,
    accuracies,
    bare,
    beyond_seeds,
    compared,
    counted,
    legend,
    spread,
)

LENGTHS = (128, 512, 2048, 4096)
MOMENTA = (0.0, 0.9, 0.99, 0.999)


def study(runner: Runner) -> Section:
    seeds = range(runner.seeds)
    of_queue = {n: [runner.cell("moco", {"queue": n}, seed=seed) for seed in seeds] for n in LENGTHS}
    of_momentum = {m: [runner.cell("moco", {"momentum": m}, seed=seed) for seed in seeds] for m in MOMENTA}
    every = iter(runner.measure([cell for cells in (*of_queue.values(), *of_momentum.values()) for cell in cells]))
    lengths, momenta = (
        {value: [next(every) for _ in cells] for value, cells in some.items()} for some in (of_queue, of_momentum)
    )
    rows = [["", "", "kNN", "linear"]]
    for name, runs_of in (("queue", lengths), ("momentum", momenta)):
        for value, runs in runs_of.items():
            rows.append([name, f"{value:,}", *[spread(accuracies(runs, kind)) for kind in ("knn", "linear")]])
    return Section(
        "queue",
        "MoCo's queue and momentum",
        "On ImageNet, accuracy rose from 54.7 to 60.6 % as the queue grew from 256 to 65,536 (figure 3). The key "
        "encoder had to move slowly: momentum 0.999 gave 59.0 %, momentum 0.9 gave 55.2 %, and without momentum "
        "training failed (section 4.1).",
        _seen(lengths, momenta),
        rows,
        _figure(lengths, momenta),
        f"Scenes, the ViT of the ladder, {epochs(of_queue[LENGTHS[0]][0])} epochs; {counted(runner.seeds)}; "
        "error bars: from the worst to the best seed",
    )


def _seen(lengths: dict[int, list[Result]], momenta: dict[float, list[Result]]) -> str:
    short, long = (accuracies(lengths[n], "linear") for n in (LENGTHS[0], LENGTHS[-1]))
    scores = {value: accuracies(runs, "linear") for value, runs in momenta.items()}
    best = max(scores, key=lambda value: mean(scores[value]))
    slowest = max(MOMENTA)
    agrees = above(long, short)
    words = [
        f"{'As in' if agrees else 'Unlike'} the paper, by a linear probe: a queue of {LENGTHS[-1]:,} is "
        f"{compared(long, short, f'a queue of {LENGTHS[0]}')}.",
        f"The best momentum is {best} ({mean(scores[best]):.1f} %).",
    ]
    ties = [str(value) for value in MOMENTA if value != best and not beyond_seeds(scores[best], scores[value])]
    if ties:
        words.append(f"Too close to tell from it: {', '.join(ties)}.")
    if above(scores[best], scores[slowest]):
        words.append(
            f"The paper's {slowest} is worse here because these runs have some hundred steps: after a thousand steps "
            "such a key encoder still holds a third of its random start."
        )
    return " ".join(words)


def _figure(lengths: dict[int, list[Result]], momenta: dict[float, list[Result]]) -> Figure:
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, runs_of, name in ((left, lengths, "length of the queue"), (right, momenta, "momentum")):
        labels = [f"{value:,}" for value in runs_of]
        for kind, label, color in (("linear", "linear probe", COLORS[0]), ("knn", "kNN", COLORS[1])):
            values = [accuracies(runs, kind) for runs in runs_of.values()]
            middle = [mean(some) for some in values]
            errors: Any = [
                [m - min(some) for m, some in zip(middle, values, strict=True)],
                [max(some) - m for m, some in zip(middle, values, strict=True)],
            ]
            axis.errorbar(labels, middle, yerr=errors, color=color, marker="o", capsize=3, label=label)
        bare(axis, name, "accuracy on test, %" if axis is left else "")
    legend(left)
    return figure
