"""Draw the page that shows all results.

Runs the stage `report`, and before it whatever it needs that is not up to date; its verdict, table and figures also go
to the Prefect UI.
"""

import base64
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import environment, exclusive, script, stage  # isort: split

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

FOLDER = Path("artifacts/report")


def markdown(folder: Path) -> str | None:
    """Returns the report for the UI, with its figures in it and the path of the page; None if the stage wrote none."""
    report, page = folder / "report.md", (folder / "index.html").resolve()
    if not report.is_file():
        return None

    def inline(link: re.Match[str]) -> str:
        data = base64.b64encode((folder / link[2]).read_bytes()).decode()
        return f"![{link[1]}](data:image/svg+xml;base64,{data})"

    text = re.sub(r"!\[([\w-]*)\]\((figures/[\w-]+\.svg)\)", inline, report.read_text(encoding="utf-8"))
    # browsers follow no link from http to file, so the path is shown too
    return f"{text.rstrip()}\n\nIn full: [index.html]({page.as_uri()}), `{page}`\n"


def publish(root: Path = environment.ROOT) -> None:
    """Show the report in the Prefect UI, under Artifacts."""
    text = markdown(root / FOLDER)
    if text is None:
        stage.logger().warning("There is no %s/report.md, so no report for the UI.", FOLDER)
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
