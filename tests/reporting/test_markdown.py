"""The report as Markdown: the verdict, the page's table, and figures that are there."""

import re
from dataclasses import replace
from xml.etree import ElementTree

from components.reporting import markdown
from components.reporting.verdict import sentences
from tests.reporting.test_page import results  # noqa: F401


def test_the_verdict_the_table_and_every_figure(results, tmp_path):  # noqa: F811
    points = [{"step": step, "value": step / 10, "measured": "a measure"} for step in (0, 4, 9)]
    changed = replace(results, measured={"moco": points}, pending={"dino": "not trained | yet"})
    markdown.write(changed, tmp_path)
    text = (tmp_path / markdown.REPORT).read_text(encoding="utf-8")
    said = sentences(changed)
    assert text.startswith("\n\n".join(said))
    assert said[0].startswith("moco recognizes 80 % of the test photos by their nearest neighbors, 4.0 times as many")
    assert said[-1].startswith("Next: ")
    assert (
        "| **moco** | 80.0 % (67.0 to 88.8) | 90.0 % (78.6 to 95.7) |  | 31 of 64 | 4 epochs, 304 photos seen |" in text
    )
    assert "| **dino** | – | – |  |  | not trained \\| yet |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "answers: 60.0 %" in text
    files = re.findall(r"!\[[\w-]+\]\((.+?)\)", text)
    assert files == ["figures/losses.svg", "figures/learned-1.svg", "figures/confusion.svg"]
    for file in files:
        svg = ElementTree.parse(tmp_path / file).getroot()
        assert svg.get("style") == "background:#fff;color:#1d2b2a"


def test_what_has_not_run_is_said_and_nothing_is_drawn(results, tmp_path):  # noqa: F811
    skipped = {"skipped": "not run yet"}
    nothing = replace(results, methods={}, logs={}, adapter=skipped, words=skipped, answering=skipped)
    markdown.write(nothing, tmp_path)
    text = (tmp_path / markdown.REPORT).read_text(encoding="utf-8")
    assert text.count("not run yet") == 3
    assert "![" not in text
