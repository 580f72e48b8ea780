"""Draw the page that shows all results.

Runs the stage `report`, and before it whatever it needs that is not up to date; its table also goes to the Prefect UI.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import environment, exclusive, script, stage  # isort: split

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

FOLDER = Path("artifacts/report")


def markdown(folder: Path) -> str | None:
    """Returns the table and the path of the page for the UI, or None if the stage wrote no table."""
    summary, page = folder / "summary.md", (folder / "index.html").resolve()
    if not summary.is_file():
        return None
    # browsers follow no link from http to file, so the path is shown too
    return f"{summary.read_text(encoding='utf-8').rstrip()}\n\nIn full: [index.html]({page.as_uri()}), `{page}`\n"


def publish(root: Path = environment.ROOT) -> None:
    """Show the table of the report in the Prefect UI, under Artifacts."""
    text = markdown(root / FOLDER)
    if text is None:
        stage.logger().warning("There is no %s/summary.md, so no table for the UI.", FOLDER)
        return
    create_markdown_artifact(text, key="report", description="Every method, measured the same way")


@flow
def report() -> State[None] | None:
    """Draw the page that shows all results."""

    def work() -> None:
        stage.repro("report")
        publish()

    return exclusive.run_exclusive(work)


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(report))
