"""Study (e): DINO's teacher beside its student, and what happens without centering or sharpening."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import COLORS, Section, accuracies, bare, legend
from components.data.photos import Photos
from components.evaluation.attention import attention_maps
from components.models.backbone import load

BASE = {"targets": "centering", "epochs": 6}
RUNS: dict[str, dict[str, Any]] = {
    "centering and sharpening": {},
    "no centering": {"center_momentum": 1.0},  # the center stays at zero
    "no sharpening": {"teacher_temperature": [0.2, 0.2]},  # as warm as the student
    "Sinkhorn and sharpening": {"targets": "sinkhorn"},
}
POINTS, PHOTOS = 8, 6


def study(runner: Runner) -> Section:
    cells = [runner.cell("dino", {**BASE, **own}, points=POINTS) for own in RUNS.values()]
    results = dict(zip(RUNS, runner.measure(cells), strict=True))
    rows = [["", "kNN, teacher", "student", "linear, teacher", "entropy of a photo's target", "of their mean"]]
    for name, result in results.items():
        last = result["log"][-1]
        student = 100 * result["others"]["student"]["knn"]["value"]
        rows.append(
            [
                name,
                *[spread_of(result, "knn")],
                f"{student:.1f}",
                spread_of(result, "linear"),
                f"{last['entropy']:.2f}",
                f"{last['prototype_usage']:.2f}",
            ]
        )
    return Section(
        "collapse",
        "DINO: teacher and student, and collapse",
        "The teacher, an average of past students, is better than the student all the way through training (figure 6). "
        "Without centering one prototype wins every photo (the targets' entropy falls to 0), without sharpening the "
        "targets become uniform (it rises to its maximum); both together prevent both (figure 7). The class token "
        "attends to objects.",
        _seen(results),
        rows,
        _figure(results, runner.backbone(cells[-1]), runner.photos(cells[-1])),
        f"scenes, the ViT of the ladder, {epochs(cells[0])} epochs, one seed; intervals ± 2.5 points; photos: class "
        f"token's attention "
        "after Sinkhorn and sharpening",
    )


def spread_of(result: Result, kind: str) -> str:
    return f"{accuracies([result], kind)[0]:.1f}"


def _seen(results: dict[str, Result]) -> str:
    both = results["centering and sharpening"]
    learned = [results[name] for name in ("centering and sharpening", "Sinkhorn and sharpening")]
    ahead = mean(float(point["kept"] > point["student"]) for result in learned for point in result["points"])
    follows = "" if ahead > 0.75 else ", unlike the paper: in a run this short it must follow closely (momentum 0.9)"
    entropies = {name: result["log"][-1]["entropy"] for name, result in results.items()}
    return (
        (
            f"At {ahead:.0%} of the measured points of the two runs that learn, the teacher is above its "
            f"student{follows}. "
            f"At the end the targets' entropy is {entropies['centering and sharpening']:.2f} of its maximum with both, "
            f"{entropies['no centering']:.2f} without centering and {entropies['no sharpening']:.2f} without "
            f"sharpening; kNN "
            f"accuracy is {accuracies([both], 'knn')[0]:.1f}, {accuracies([results['no centering']], 'knn')[0]:.1f} "
            f"and "
            f"{accuracies([results['no sharpening']], 'knn')[0]:.1f} %."
        )
        .replace("%", " %")
        .replace("  %", " %")
    )


def _figure(results: dict[str, Result], backbone: Path, data: Path) -> Figure:
    figure = Figure(figsize=(7.4, 5.6), layout="constrained")
    grid = figure.add_gridspec(3, PHOTOS, height_ratios=(2.2, 1, 1))
    left, right = figure.add_subplot(grid[0, : PHOTOS // 2]), figure.add_subplot(grid[0, PHOTOS // 2 :])
    for color, (name, result) in zip(COLORS, results.items(), strict=False):
        seen = [point["pictures"] for point in result["points"]]
        left.plot(seen, [100 * point["kept"] for point in result["points"]], color=color, label=f"{name}")
        left.plot(seen, [100 * point["student"] for point in result["points"]], color=color, linestyle=":")
        steps = [line["step"] for line in result["log"]]
        right.plot(steps, [line["entropy"] for line in result["log"]], color=color, label=name)
    bare(left, "pictures seen", "kNN on val, %; dotted: student")
    bare(right, "step", "entropy of the targets")
    legend(left)
    photos = Photos(data)
    rows = np.random.default_rng(0).permutation(photos.rows("test"))[:PHOTOS]
    model = load(backbone)
    pixels = photos.squares(rows, model.config.image_size, model.config.square)
    maps, _ = attention_maps(model.eval(), pixels)
    for column in range(PHOTOS):
        for row, picture in ((1, pixels[column].permute(1, 2, 0).numpy()), (2, maps[column].numpy())):
            axis: Any = figure.add_subplot(grid[row, column])
            axis.imshow(picture, cmap="magma")
            axis.axis("off")
    return figure
