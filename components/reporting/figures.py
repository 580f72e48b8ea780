"""Figures as SVG text or inline data, so that the page is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from torch import Tensor

mpl.use("svg")
import matplotlib.pyplot as plt

INK = "#010203"  # stands for the color of the page's text, which is light on a dark page
for _name in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
    mpl.rcParams[_name] = INK
SHARES = LinearSegmentedColormap.from_list("shares", ["#2f807d00", "#2f807dff"])  # from the paper, light or dark
COLORS = ("#3f908c", "#d3654d", "#7b80c4", "#b08900", "#8d957f", "#b065a9")  # on light and on dark


def data_uri(image: Tensor, quality: int = 88, most: int | None = None) -> str:
    """Returns a photo, uint8 [3, H, W], as a JPEG in a data URI. most: pixels of its longer side, if it has more."""
    file, picture = io.BytesIO(), Image.fromarray(image.permute(1, 2, 0).numpy())
    if most:
        picture.thumbnail((most, most))
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def curves(logs: dict[str, list[dict[str, float]]], key: str = "loss") -> str:
    """Returns one SVG element with a panel for each method: `key` over the steps. logs: at least one.

    Each panel has its own scale, for the losses of different methods cannot be compared.
    """
    columns = min(3, len(logs))
    rows = -(-len(logs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.3 * rows), squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= len(logs):
            axis.remove()
            continue
        name, lines = list(logs.items())[index]
        axis.plot([line["step"] for line in lines], [line[key] for line in lines], color=COLORS[index % len(COLORS)])
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _svg(figure)


def learned(points: dict[str, list[tuple[float, float]]]) -> str:
    """Returns one SVG element: how much is known over the photos seen, a line for each method. points: at least one."""
    figure, axis = plt.subplots(figsize=(4.8, 2.7))  # narrow, so that letters can still be read on a phone
    for index, (name, line) in enumerate(points.items()):
        seen, values = zip(*line, strict=True)
        axis.plot(seen, [100 * value for value in values], marker="o", markersize=3, color=COLORS[index % len(COLORS)])
        axis.annotate(name, (seen[-1], 100 * values[-1]), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_xlabel("photos seen", fontsize=8)
    axis.set_ylabel("%", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
    figure.tight_layout()
    return _svg(figure)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Returns the confusion matrix as one SVG element: a row per true class, a column per predicted class.

    A cell is shaded by its share of the row.
    """
    table = np.array(counts)
    of_row = table / table.sum(1, keepdims=True).clip(1)
    side = max(3.2, 0.36 * len(classes) + 1.3)
    figure, axis = plt.subplots(figsize=(side + 0.4, side))
    axis.imshow(of_row, cmap=SHARES, vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(classes)), classes, fontsize=9)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(table):
            if count:
                color = "white" if of_row[row, column] > 0.5 else INK
                axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    axis.spines[:].set_visible(False)
    figure.tight_layout()
    return _svg(figure)


def standalone(svg: str) -> str:
    """Returns the SVG with paper and ink of its own, for viewers that may be dark, where it is an image."""
    return svg.replace("<svg ", '<svg style="background:#fff;color:#1d2b2a" ', 1)


def _svg(figure: object) -> str:
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "selfsight"}):  # the same page for the same numbers
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})  # type: ignore[attr-defined]
    plt.close(figure)  # type: ignore[arg-type]
    text = file.getvalue().replace(INK, "currentColor")
    return text[text.index("<svg") :]
