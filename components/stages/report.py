"""Stage: writes the results of all stages to one HTML page, and a summary for the terminal."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from components.config import Strict, methods, read_section, write_config
from components.data.photos import Photos
from components.evaluation.attention import MAPS
from components.reporting import for_dvc, markdown
from components.reporting.compared import compare
from components.reporting.maps import read_maps
from components.reporting.page import render
from components.reporting.photo_map import photo_map
from components.reporting.results import read_results
from components.reporting.summary import summary
from components.reporting.verdict import sentences
from components.stages.exit_code import exit_code


class ReportConfig(Strict):
    queries: int = Field(8, ge=1)  # test photos shown with their neighbors


def report(config: ReportConfig, names: list[str], artifacts: Path, out: Path) -> str:
    """Write index.html, summary.md, report.md, what DVC shows, and config.json to `out`.

    Returns the summary. Stages and methods that have not run are named on the page, with the command that runs them.
    """
    results, neighbors = read_results(artifacts, names), {}
    results = replace(results, compared=compare(results, artifacts / "evaluate"))
    if best := results.best_method():
        neighbors = json.loads((artifacts / "evaluate" / best / "neighbors.json").read_text(encoding="utf-8"))
    photos = Photos(artifacts / "prepare")
    maps = read_maps({name: artifacts / "evaluate" / name / MAPS for name in results.best_first()}, photos)
    places = photo_map(artifacts / "embed", photos)
    page = render(results, photos, neighbors, config.queries, maps=maps, photo_map=places)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page, encoding="utf-8")
    text = "\n\n".join([*sentences(results), summary(results)])
    (out / "summary.md").write_text(text, encoding="utf-8")
    markdown.write(results, out)
    for_dvc.write(results, out)
    write_config(config, out / "config.json")
    return text


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=Path, required=True, help="the folder with the results of all stages")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with exit_code("report", parser):
        print(report(read_section("report", ReportConfig), methods(), args.artifacts, args.out))
    print(f"report: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
