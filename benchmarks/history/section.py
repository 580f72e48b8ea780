"""What a study ends in: words, a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from scipy.stats import t

mpl.use("agg")
COLORS = ("#2f6f6d", "#c8553d", "#5b5f97", "#b08900", "#7d8471", "#9b5094")

TITLES = {  # names of methods as their papers write them
    "contextprediction": "context prediction",
    "moco": "MoCo",
    "simclr": "SimCLR",
    "dino": "DINO",
    "vicreg": "VICReg",
    "supervised": "supervised",
}
BAR = 0.38  # width, of the distance of two names
POINTS = 3  # about the 95 % interval of a difference of two accuracies on 1,600 photos, other seeds not counted


@dataclass(frozen=True)
class Section:
    """claim: what the paper reports; seen: what these runs show, and where it differs; both as sentences.

    table: rows of a Markdown table, the first one with the names of the columns. runs: photos, network and seeds.
    """

    name: str
    title: str
    claim: str
    seen: str
    table: list[list[str]]
    figure: Figure
    runs: str


def markdown(rows: list[list[str]]) -> str:
    """Returns a Markdown table of rows, the first one of names."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def accuracies(results: list[dict[str, Any]], kind: str, of: str = "test") -> list[float]:
    """Returns the accuracies in per cent of runs with different seeds. kind: knn or linear."""
    return [100 * result[of][kind]["value"] for result in results]


def spread(values: list[float]) -> str:
    """Returns the mean of some seeds, with their standard deviation if there are two or more."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def beyond_seeds(first: list[float], second: list[float]) -> bool:
    """Returns True if two means differ by more than the 95 % interval of their difference over the seeds (t-test).

    With one seed each, if they differ by more than POINTS.
    """
    difference = abs(mean(first) - mean(second))
    if min(len(first), len(second)) < 2:
        return difference > POINTS
    error = (stdev(first) ** 2 / len(first) + stdev(second) ** 2 / len(second)) ** 0.5
    freedom = len(first) + len(second) - 2
    return bool(difference > t.ppf(0.975, freedom) * error)


def above(first: list[float], second: list[float]) -> bool:
    """Returns True if the mean of `first` is above that of `second` by more than the seeds explain (`beyond_seeds`)."""
    return mean(first) > mean(second) and beyond_seeds(first, second)


def counted(seeds: int) -> str:
    """Returns the number of seeds in words; for one also the interval of a score on the 1,600 test photos of scenes."""
    return "one seed; 95 % intervals ± 2.5 points" if seeds == 1 else f"{seeds} seeds"


def compared(first: list[float], second: list[float], reference: str) -> str:
    """Returns in words how far the mean of `first` is above or below that of `second`, which `reference` names."""
    difference = mean(first) - mean(second)
    if not beyond_seeds(first, second):
        return f"level with {reference} ({difference:+.1f} points, too little to tell)"
    return f"{abs(difference):.1f} points {'above' if difference > 0 else 'below'} {reference}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Returns names as a list in a sentence: "a, b and c"."""
    return f" {last} ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def paired_bars(axis: Any, names: list[str], pair: dict[str, list[list[float]]], fontsize: int = 9) -> None:
    """Draws two bars for each name, the means over seeds, with their standard deviations as error bars.

    pair: by the two labels of the legend, the values of the seeds of each name.
    """
    for offset, (label, values) in enumerate(pair.items()):
        errors = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
        places = [place + BAR * (offset - 0.5) for place in range(len(names))]
        axis.bar(
            places,
            list(map(mean, values)),
            BAR,
            yerr=errors if any(errors) else None,
            capsize=2,
            label=label,
            color=COLORS[offset],
        )
    axis.set_xticks(range(len(names)), names, fontsize=fontsize)


def legend(axis: Any) -> None:
    """Puts the legend of an axis above the figure, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=7, frameon=False)


def bare(axis: Any, x: str = "", y: str = "") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
