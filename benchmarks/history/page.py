"""Writes a study into docs/history: its figure, and its section of the page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.history.section import Section, markdown
from benchmarks.methods import machine

HEAD = """# The history of self-supervision, in our own runs

From a puzzle of patches (context prediction, 2015) over contrast with a queue (MoCo, 2019) and with a large batch
(SimCLR, 2020) to self-distillation (DINO, 2021): what each paper found, repeated with small networks in minutes on two
cores. Every section is written by the command that it names, from runs whose settings are those of `params.yaml` but
for what is studied. Accuracies are on test, in per cent: the mean over seeds ± their standard deviation. "kNN" is a
vote of the 20 nearest training photos, "linear" a linear probe whose penalty is chosen on val. What holds on photos of
64 pixels after some minutes need not hold on ImageNet after weeks; where the two differ, the section says so.
"""


def write(section: Section, folder: Path, command: str, order: list[str]) -> None:
    """Writes folder/NAME.png, and puts the section into folder/README.md in the given order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    section.figure.savefig(folder / f"{section.name}.png", dpi=110)
    text = "\n\n".join(
        [
            f"## {section.title}",
            f"The paper: {section.claim}",
            f"![{section.title}]({section.name}.png)",
            f"Here: {section.seen}",
            markdown(section.table),
            f"`{command}` ({section.runs}; {machine()}).",
        ]
    )
    page = folder / "README.md"
    sections = _sections(page.read_text(encoding="utf-8")) if page.is_file() else {}
    sections[section.name] = text
    body = [f"<!-- {name} -->\n{sections[name]}\n<!-- end -->\n" for name in order if name in sections]
    page.write_text("\n".join([HEAD, *body]), encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    """Returns the sections of a page by their names."""
    found = {}
    for part in text.split("<!-- end -->"):
        if "<!-- " in part:
            name, _, rest = part.rpartition("<!-- ")[2].partition(" -->\n")
            found[name] = rest.strip()
    return found
