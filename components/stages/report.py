"""Stage: everything that was found -> one page, and a summary for a terminal."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

from pydantic import Field

from components.config import Strict, methods, read, write
from components.data.photos import Photos
from components.reporting.findings import gather, summary
from components.reporting.page import render


class ReportConfig(Strict):
    queries: int = Field(8, ge=1)  # pictures in the retrieval grid


def report(config: ReportConfig, names: list[str], artifacts: Path, out: Path) -> str:
    """Write index.html, summary.md and config.json to `out`; the summary."""
    findings = gather(artifacts, names)
    near = json.loads((artifacts / "evaluate" / findings.best() / "neighbors.json").read_text(encoding="utf-8"))
    page = render(findings, Photos(artifacts / "prepare"), near, config.queries)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page, encoding="utf-8")
    (out / "summary.md").write_text(summary(findings), encoding="utf-8")
    write(config, out / "config.json")
    return summary(findings)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=Path, required=True, help="the folder with every stage's results")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        print(report(read("report", ReportConfig), methods(), given.artifacts, given.out))
    except ValueError as error:
        parser.exit(2, f"report: {error}\n")
    print(f"report: {given.out / 'index.html'}")


if __name__ == "__main__":
    main()
