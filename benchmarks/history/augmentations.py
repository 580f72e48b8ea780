"""Study (b): which augmentations SimCLR needs, alone and in pairs."""

from __future__ import annotations

from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Runner
from benchmarks.history.section import Section, accuracies, beyond_seeds, counted, spread

NONE: dict[str, Any] = {"crop": [1.0, 1.0], "color_strength": 0.0, "gray": 0.0, "blur": 0.0, "distort": []}
CHANGES: dict[str, dict[str, Any]] = {
    "crop": {"crop": [0.08, 1.0]},
    "color": {"color_strength": 1.0},
    "gray": {"gray": 0.5},
    "blur": {"blur": 0.5},
    "sobel": {"distort": ["sobel"]},
    "cutout": {"distort": ["cutout"]},
    "rotate": {"distort": ["rotate"]},
    "noise": {"distort": ["noise"]},
}
EPOCHS = 3
OUTLINES = " The classes of scenes differ in outline, never in color, and Sobel's filter keeps the outlines alone."


def settings(*names: str) -> dict[str, Any]:
    """Returns SimCLR's settings with these augmentations alone; flips are always on, as in the paper's code."""
    merged = {**NONE, "epochs": EPOCHS}
    for name in names:
        change = CHANGES[name]
        merged |= change if "distort" not in change else {"distort": [*merged["distort"], *change["distort"]]}
    return merged


def study(runner: Runner) -> Section:
    pairs = [*((name, name) for name in CHANGES), *combinations(CHANGES, 2)]
    wanted = [settings(), *(settings(*dict.fromkeys(pair)) for pair in pairs)]
    cells = [[runner.cell("simclr", own, seed=seed) for seed in range(runner.seeds)] for own in wanted]
    every = iter(runner.measure([cell for some in cells for cell in some]))
    first, *results = [accuracies([next(every) for _ in some], "linear") for some in cells]
    accuracy = dict(zip(pairs, results, strict=True))
    accuracy |= {(b, a): values for (a, b), values in accuracy.items()}
    names = list(CHANGES)
    rows = [["", *names], *[[a, *[spread(accuracy[a, b]) for b in names]] for a in names]]
    return Section(
        "augmentations",
        "Which augmentations SimCLR needs",
        "No augmentation suffices alone. Random crops together with color distortion stand out: 56 % on ImageNet, "
        "against 33 % for crops alone and about 19 % for color alone. Without color distortion, two crops of a photo "
        "can be matched by their color histograms (figure 5).",
        _seen(accuracy, first),
        rows,
        _figure(accuracy),
        f"Scenes, the ViT of the ladder, {epochs(cells[0][0])} epochs, both views augmented alike; "
        f"{counted(runner.seeds)}",
    )


def _seen(accuracy: dict[tuple[str, str], list[float]], none: list[float]) -> str:
    single = {a: values for (a, b), values in accuracy.items() if a == b}
    best_single = max(single, key=lambda name: mean(single[name]))
    pairs = {pair: accuracy[pair] for pair in combinations(CHANGES, 2)}
    best = max(pairs, key=lambda pair: mean(pairs[pair]))
    equal = [" with ".join(pair) for pair in pairs if pair != best and not beyond_seeds(pairs[best], pairs[pair])]
    crop_color = accuracy["crop", "color"]
    agrees = "unlike the paper" if beyond_seeds(pairs[best], crop_color) else "as in the paper"
    why = OUTLINES if "sobel" in best else ""
    ties = f" Too close to tell from it: {', '.join(equal)}." if equal else ""
    return (
        f"The best pair is {' with '.join(best)} ({mean(pairs[best]):.1f} %).{ties} Crop with color has "
        f"{mean(crop_color):.1f} %, {agrees}. The best single augmentation is {best_single} "
        f"({mean(single[best_single]):.1f} %). All runs also flip the pictures; flips alone give {mean(none):.1f} %."
        f"{why}"
    )


def _figure(accuracy: dict[tuple[str, str], list[float]]) -> Figure:
    names = list(CHANGES)
    table = np.array([[mean(accuracy[a, b]) for b in names] for a in names])
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axis: Any = figure.add_subplot()
    shown = axis.imshow(table, cmap="viridis")
    for row, column in np.ndindex(table.shape):
        light = table[row, column] > (table.min() + table.max()) / 2
        axis.text(
            column,
            row,
            f"{table[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if light else "white",
        )
    axis.set_xticks(range(len(names)), names, rotation=45, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shown, label="linear probe on test, %; on the diagonal: alone")
    return figure
