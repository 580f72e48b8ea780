"""Writes a study into docs/history: its figure, and its section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.history.section import Section, markdown

HEAD = """# The history of self-supervision, in our own runs

Self-supervision began with a puzzle of patches (context prediction, 2015). It went on with contrastive learning, first
with a queue of negatives (MoCo, 2019), then with a large batch (SimCLR, 2020), and arrived at self-distillation
(DINO, 2021). This page repeats what these papers found, with small networks, in minutes on two CPU cores.

- Each section is written by the command below its table. Its runs use the settings of `params.yaml`, except for what
  is studied.
- Accuracies are in percent, on test photos: the mean over seeds ± their standard deviation.
- "kNN" is the vote of the 20 nearest training photos. "Linear" is a linear probe whose penalty is chosen on val.
- "Pictures seen" counts every photo each time that training shows it.
- Photos of 64 pixels and minutes of training need not behave as ImageNet and weeks do. Each section says where they
  differ.
"""


def write(section: Section, results: dict[str, Any], folder: Path, made: str, order: list[str]) -> None:
    """Writes folder/NAME.png and folder/results/NAME.json, and puts the section into folder/README.md.

    results: what the section was made from, by the cell's key; made: the command and the machine; order: the names of
    the sections, in the order of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    section.figure.savefig(folder / f"{section.name}.png", dpi=110, bbox_inches="tight")
    file = folder / "results" / f"{section.name}.json"
    file.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(_rounded(result))}" for name, result in sorted(results.items())]
    text = ",\n".join([f'"made": {json.dumps(made)}', *lines])
    file.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    text = "\n\n".join(
        [
            f"## {section.title}",
            f"**The paper.** {section.claim}",
            f"![{section.title}]({section.name}.png)",
            f"**Our runs.** {section.seen}",
            markdown(section.table),
            f"Made by {made}. {section.runs}.",
        ]
    )
    page = folder / "README.md"
    sections = _sections(page.read_text(encoding="utf-8")) if page.is_file() else {}
    sections[section.name] = text
    body = [f"<!-- {name} -->\n{sections[name]}\n<!-- end -->\n" for name in order if name in sections]
    page.write_text("\n".join([HEAD, *body]), encoding="utf-8")


def recorded(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """Returns the results of a section that `write` has left in a folder, by the cell's key, and how they were made.

    Raises ValueError if there are none.
    """
    file = folder / "results" / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; without --recorded, the study {name} is run")
    results = json.loads(file.read_text(encoding="utf-8"))
    return results, results.pop("made")


def _rounded(value: Any) -> Any:
    """Returns nested lists and dictionaries with numbers of six digits."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _sections(text: str) -> dict[str, str]:
    """Returns the sections of a page by their names."""
    sections = {}
    for part in text.split("<!-- end -->"):
        if "<!-- " in part:
            name, _, rest = part.rpartition("<!-- ")[2].partition(" -->\n")
            sections[name] = rest.strip()
    return sections
