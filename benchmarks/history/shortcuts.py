"""Study (f): what context prediction looks at if it is allowed to: the color fringes of a lens."""

from __future__ import annotations

from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import Section, above, accuracies, bare, compared, counted, legend, paired_bars, spread

TRICKS: dict[str, dict[str, Any]] = {
    "all tricks": {"color": "dropping"},
    "colors kept": {"color": "none"},
    "no gap": {"color": "dropping", "gap": 0},
    "no jitter": {"color": "dropping", "jitter": 0},
    "no trick": {"color": "none", "gap": 0, "jitter": 0, "contrast": False},
}
PHOTO_SETS = {"scenes": "without fringes", "fringes": "with color fringes"}
EPOCHS = 6
PUZZLE = 1.5  # per cent of the puzzles solved, of some ten thousand, that chance does not explain


def study(runner: Runner) -> Section:
    pairs = [(photos, trick) for photos in PHOTO_SETS for trick in TRICKS]
    cells = [
        [
            runner.cell("contextprediction", {**TRICKS[trick], "epochs": EPOCHS}, photos=photos, seed=seed)
            for seed in range(runner.seeds)
        ]
        for photos, trick in pairs
    ]
    every = iter(runner.measure([cell for some in cells for cell in some]))
    results = {pair: [next(every) for _ in some] for pair, some in zip(pairs, cells, strict=True)}
    rows = [
        [
            "",
            *[f"{column}, {photos}" for photos in PHOTO_SETS.values() for column in ("puzzle solved", "kNN", "linear")],
        ]
    ]
    for trick in TRICKS:
        scores = [text for photos in PHOTO_SETS for text in _scores(results[photos, trick])]
        rows.append([trick, *scores])
    return Section(
        "shortcuts",
        "Context prediction and its shortcuts",
        "The network solved the puzzle by chromatic aberration: a lens magnifies each color differently, so the color "
        "fringes of a patch show how far from the middle of the photo it was cut. Gaps between patches, jitter, and "
        "dropping two of the three colors take such shortcuts away, and the features learn objects instead "
        "(section 3.1).",
        _seen(results),
        rows,
        _figure(results),
        f"Scenes, the ViT of the ladder on 3 × 3 patches, {epochs(cells[0][0])} epochs; "
        f"{counted(runner.seeds)}; color fringes: red enlarged by 3 %, blue reduced by 3 %",
    )


def _puzzles(results: list[Result]) -> list[float]:
    """Returns how often each seed solved the puzzle at the end of training, in per cent (mean of its last steps)."""
    return [100 * mean(line["accuracy"] for line in result["log"][-3:]) for result in results]


def _scores(results: list[Result]) -> list[str]:
    return [spread(_puzzles(results)), *[spread(accuracies(results, kind)) for kind in ("knn", "linear")]]


def _seen(results: dict[tuple[str, str], list[Result]]) -> str:
    words = []
    for trick in ("colors kept", "all tricks"):
        with_fringes, without = results["fringes", trick], results["scenes", trick]
        solved = mean(_puzzles(with_fringes)) - mean(_puzzles(without))
        effect = "no easier" if abs(solved) < PUZZLE else "easier" if solved > 0 else "harder"
        linear, reference = accuracies(with_fringes, "linear"), accuracies(without, "linear")
        learned = compared(linear, reference, "those without fringes")
        puzzle = f"With {trick}, color fringes make the puzzle {effect} ({solved:+.1f} points)"
        words.append(f"{puzzle}, and the features are {learned}.")
        if effect == "easier":
            words.append("As in the paper." if above(reference, linear) else "In the paper such features were worse.")
    return " ".join([*words, "A guess solves 12.5 % of the puzzles."])


def _figure(results: dict[tuple[str, str], list[Result]]) -> Figure:
    figure = Figure(figsize=(7.4, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = (
        ("puzzle solved in training, %", _puzzles),
        ("linear probe on test, %", lambda results: accuracies(results, "linear")),
    )
    for axis, (label, values_of) in zip(axes, panels, strict=True):
        values = {name: [values_of(results[photos, trick]) for trick in TRICKS] for photos, name in PHOTO_SETS.items()}
        paired_bars(axis, list(TRICKS), values, fontsize=7)
        bare(axis, "", label)
    legend(axes[0])
    return figure
