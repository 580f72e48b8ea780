"""The results as Markdown with figures beside it, for viewers without HTML such as the Prefect UI."""

from __future__ import annotations

from pathlib import Path

from components.reporting.figures import confusion, curves, learned, standalone
from components.reporting.formats import over_seeds, percent
from components.reporting.results import Results
from components.reporting.summary import under_table, uses
from components.reporting.table import table_rows
from components.reporting.verdict import sentences

REPORT, FIGURES = "report.md", "figures"


def write(results: Results, out: Path) -> None:
    """Writes report.md (the verdict, the table of the page, figures), and figures/*.svg, which it shows, to `out`."""
    folder = out / FIGURES
    folder.mkdir(exist_ok=True)
    parts = [*sentences(results), table(results), "\n".join(under_table(results)), *uses(results)]
    for name, (words, svg) in figures(results).items():
        (folder / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
        parts.append(f"{words}\n\n![{name}]({FIGURES}/{name}.svg)")
    (out / REPORT).write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def table(results: Results) -> str:
    """Returns the table of baselines and methods as on the page."""
    lines = ["| backbone | kNN accuracy | linear accuracy | MAP@R | effective rank | |", "|---|---|---|---|---|---|"]
    for row in table_rows(results):
        health, retrieval = row.get("health"), row.get("map_at_r")
        rank = f"{health['effective_rank']:.0f} of {health['dimensions']}" if health else ""
        map_at_r = f"{100 * retrieval['value']:.1f} %" if retrieval else ""
        knn, linear = (percent(row[kind]) + over_seeds(row.get("seeds", {}), kind, "; ") for kind in ("knn", "linear"))
        cells = [f"**{row['name']}**", knn, linear, map_at_r, rank, row["words"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def figures(results: Results) -> dict[str, tuple[str, str]]:
    """Returns file name -> the words above a figure, and its SVG."""
    drawn: dict[str, tuple[str, str]] = {}
    if results.logs:
        words = "Training loss. The losses of different methods are different quantities and cannot be compared."
        drawn["losses"] = (words, curves(results.logs))
    for number, (measured, points) in enumerate(results.learned().items(), 1):
        drawn[f"learned-{number}"] = (f"{measured}, by the number of photos seen in training:", learned(points))
    if "confusion" in results.adapter:
        words = "The classifier: how many photos of each class (row) were predicted as each class (column)."
        drawn["confusion"] = (words, confusion(results.adapter["confusion"], results.adapter["classes"]))
    return drawn
