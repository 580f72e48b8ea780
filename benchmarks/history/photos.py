"""Study (g): how many photos does one need? CIFAR-10 from random weights, and from published ones."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import COLORS, POINTS, TITLES, Section, accuracies, bare, legend

PUBLISHED = (1000, 5000)  # photos whose labels the published backbone is measured with; more of them cost minutes
BACKBONE = {"kind": "vit", "image_size": 32, "patch_size": 4, "width": 128, "depth": 3, "heads": 4}
VIEWS = {"crop": [0.2, 1.0], "blur": 0.0}
OPTIMIZER = {
    "kind": "adamw",
    "lr": 4.0e-3,
    "weight_decay": 0.05,
    "schedule": {"kind": "cosine", "warmup": 0.1},
    "clip": 3.0,
}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {**VIEWS, "hidden": 512, "temperature": 0.2, "color_strength": 0.5, "optimizer": OPTIMIZER},
    "vicreg": {"dim": 512, "views": {"crop": [0.2, 1.0], "blur": [0.0, 0.0]}, "optimizer": OPTIMIZER},
}
PICTURES = {1000: 50_000, 5000: 200_000, 20_000: 500_000, 50_000: 1_000_000}  # seen in training, by photos


def study(runner: Runner) -> Section:
    common = {"backbone": BACKBONE, "batch_size": 256}
    trained = {
        (name, count): runner.cell(
            name,
            {**own, "epochs": round(pictures / count)},
            common,
            photos=f"cifar-{count}",
            points=3,
        )
        for name, own in METHODS.items()
        for count, pictures in PICTURES.items()
    }
    floor = {
        ("untrained", count): runner.cell("simclr", {"epochs": 0}, common, photos=f"cifar-{count}")
        for count in PICTURES
    }
    published = {("published", count): runner.cell("published", photos=f"cifar-{count}") for count in PUBLISHED}
    cells = {**trained, **floor, **published}
    results = dict(zip(cells, runner.measure(list(cells.values())), strict=True))
    results |= {("pixels", count): {"test": results["untrained", count]["pixels"]} for count in PICTURES}
    names = ["raw pixels", "untrained", *[TITLES[name] for name in METHODS], "published"]
    spent = [f"pictures seen · minutes of one core, {TITLES[name]}" for name in METHODS]
    rows = [["photos", *[f"{name}, kNN · linear" for name in names], *spent]]
    for count in PICTURES:
        scores = [_both(results.get((name, count))) for name in _names()]
        spent = [_spent(results.get((name, count))) for name in METHODS]
        rows.append([f"{count:,}", *scores, *spent])
    return Section(
        "photos",
        "How many photos does one need?",
        "SimCLR was trained on 1.3 million photos for 100 to 1,000 epochs. On the 50,000 photos of CIFAR-10, a "
        "ResNet-50 reaches 94 % by a linear probe after 1,000 epochs, which are 50 million pictures (appendix B.9).",
        _seen(results),
        rows,
        _figure(results),
        "CIFAR-10, 32 pixels, 4,000 photos for test and 1,000 for val, both from its test split; a ViT with 0.6 "
        "million parameters and patches of 4 pixels; published: EfficientNet-Lite0 on photos enlarged to 64 pixels; "
        "one seed; 95 % intervals ± 1.6 points",
    )


def _both(result: Result | None) -> str:
    """Returns the kNN and the linear accuracy of a run in per cent, "" if there is none."""
    if not result:
        return ""
    return " · ".join(f"{accuracies([result], kind)[0]:.1f}" for kind in ("knn", "linear"))


def _spent(run: Result | None) -> str:
    return f"{run['pictures']:,} · {run['cpu_seconds'] / 60:.0f}" if run else ""


def _names() -> list[str]:
    return ["pixels", "untrained", *METHODS, "published"]


def _seen(results: dict[tuple[str, int], Result]) -> str:
    words = []
    for name in METHODS:
        above = {
            count: accuracies([results[name, count]], "linear")[0] - accuracies([results["pixels", count]], "linear")[0]
            for count in PICTURES
        }
        wins = [count for count, points in above.items() if points > POINTS]
        begins = f"beats raw pixels from {min(wins):,} photos on" if wins else "does not clearly beat raw pixels"
        most = max(above)
        words.append(
            f"By a linear probe, {TITLES[name]} {begins}; with {most:,} photos the difference is {above[most]:+.1f} "
            "points."
        )
    few, many = max(PUBLISHED), max(PICTURES)
    start = accuracies([results["published", few]], "linear")[0]
    trained = max(accuracies([results[name, many]], "linear")[0] for name in METHODS)
    advice = " With some thousand photos, start from published weights." if start > trained else ""
    return (
        f"{' '.join(words)} More photos were also trained on longer, as the table shows. Published weights, untouched, "
        f"reach {start:.1f} % with the labels of {few:,} photos; training from random weights reaches {trained:.1f} % "
        f"with {many:,} photos.{advice}"
    )


def _figure(results: dict[tuple[str, int], Result]) -> Figure:
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind in zip(axes, ("knn", "linear"), strict=True):
        for color, name in zip(COLORS, _names(), strict=False):
            counts = [count for count in PICTURES if (name, count) in results]
            values = [results[name, count]["test"][kind] for count in counts]
            middle = [100 * value["value"] for value in values]
            errors = [
                [100 * (value["value"] - value["low"]) for value in values],
                [100 * (value["high"] - value["value"]) for value in values],
            ]
            label = TITLES.get(name, name)
            axis.errorbar(counts, middle, yerr=errors, marker="o", markersize=3, capsize=2, color=color, label=label)
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(list(PICTURES), [f"{count:,}" for count in PICTURES])
        bare(
            axis,
            "training photos (pictures seen grow with them)",
            f"{'kNN' if kind == 'knn' else 'linear probe'} on test, %",
        )
    legend(axes[0])
    return figure
