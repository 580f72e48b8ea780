"""Study (e): DINO's teacher beside its student, and what happens without centering or sharpening."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.history.cell import epochs
from benchmarks.history.runner import Result, Runner
from benchmarks.history.section import COLORS, Section, accuracies, bare, counted, legend, spread
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
    cells = {
        name: [runner.cell("dino", {**BASE, **own}, points=POINTS, seed=seed) for seed in range(runner.seeds)]
        for name, own in RUNS.items()
    }
    every = iter(runner.measure([cell for some in cells.values() for cell in some]))
    results = {name: [next(every) for _ in some] for name, some in cells.items()}
    rows = [["", "kNN, teacher", "student", "linear, teacher", "entropy of a photo's target", "of their mean"]]
    for name, runs in results.items():
        student = [100 * run["others"]["student"]["knn"]["value"] for run in runs]
        scores = [spread(accuracies(runs, "knn")), spread(student), spread(accuracies(runs, "linear"))]
        rows.append([name, *scores, *[f"{_last(runs, of):.2f}" for of in ("entropy", "prototype_usage")]])
    drawn = cells["Sinkhorn and sharpening"][0]
    return Section(
        "collapse",
        "DINO: teacher and student, and collapse",
        "The teacher is an average of past students, and better than the student all the way through training "
        "(figure 6). Without centering, one prototype wins every photo: the entropy of the targets falls to 0. Without "
        "sharpening, the targets become uniform: their entropy rises to its maximum. Both together prevent collapse "
        "(figure 7). The class token attends to objects.",
        _seen(results),
        rows,
        _figure(results, runner.backbone(drawn), runner.photos(drawn)),
        f"Scenes, the ViT of the ladder, {epochs(drawn)} epochs; {counted(runner.seeds)}; curves: means over seeds; "
        "photos: attention of the class token after training with Sinkhorn and sharpening",
    )


def _last(runs: list[Result], name: str) -> float:
    """Returns the last logged value of a name, the mean over seeds."""
    return mean(float(run["log"][-1][name]) for run in runs)


def _seen(results: dict[str, list[Result]]) -> str:
    learning = [run for name in ("centering and sharpening", "Sinkhorn and sharpening") for run in results[name]]
    points = [point for run in learning for point in run["points"]]
    ahead = 100 * mean(float(point["kept"] > point["student"]) for point in points)
    agrees = "As in the paper" if ahead > 75 else "Unlike the paper"
    follows = "" if ahead > 75 else " In a run this short the teacher must follow its student closely (momentum 0.9)."
    both, *without = ("centering and sharpening", "no centering", "no sharpening")
    entropies = [f"{_last(results[name], 'entropy'):.2f}" for name in (both, *without)]
    scores = [f"{mean(accuracies(results[name], 'knn')):.1f}" for name in (both, *without)]
    return (
        f"{agrees}: in the runs that learn, the teacher is above its student at {ahead:.0f} % of the points measured."
        f"{follows} At the end, the entropy of the targets is {entropies[0]} of its maximum with centering and "
        f"sharpening, {entropies[1]} without centering and {entropies[2]} without sharpening. The kNN accuracies are "
        f"{scores[0]}, {scores[1]} and {scores[2]} %."
    )


def _figure(results: dict[str, list[Result]], backbone: Path, data: Path) -> Figure:
    figure = Figure(figsize=(7.4, 5.6), layout="constrained")
    grid = figure.add_gridspec(3, PHOTOS, height_ratios=(2.2, 1, 1))
    left, right = figure.add_subplot(grid[0, : PHOTOS // 2]), figure.add_subplot(grid[0, PHOTOS // 2 :])
    for color, (name, runs) in zip(COLORS, results.items(), strict=False):
        seen, kept = _curve(runs, "points", "pictures", "kept")
        left.plot(seen, 100 * kept, color=color, label=name)
        seen, student = _curve(runs, "points", "pictures", "student")
        left.plot(seen, 100 * student, color=color, linestyle=":")
        right.plot(*_curve(runs, "log", "step", "entropy"), color=color, label=name)
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


def _curve(runs: list[Result], lines: str, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns x, which all seeds share, and the mean of y over the seeds."""
    positions, values = (np.array([[line[name] for line in run[lines]] for run in runs], float) for name in (x, y))
    return positions[0], values.mean(0)
