"""Reads captions.csv and captions.jsonl as people write them; a row that cannot be used is named and left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.data.csv_rows import Columns, Row, csv_rows, read_lines, row_problem
from components.data.entries import BadRow

FILES = ("captions.csv", "captions.jsonl")
TEXTS = ("caption", "question", "answer")
MAX_LENGTH = 2000  # characters of a caption
COLUMNS = Columns(
    TEXTS, (frozenset({"caption"}), frozenset({"question", "answer"})), "caption or question and answer", TEXTS
)


@dataclass
class Captions:
    """rows: by caption key. count: all rows, with the rejected. notes: what was repaired."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    count: int = 0
    rejected: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(root: Path, image_keys: Collection[str], key: Callable[[str], str]) -> Captions:
    """Reads the captions files at the top of `root`. Columns: path, and caption or question and answer.

    image_keys: the keys of all images. key: turns a path into its key.
    Raises ValueError if the first line of a CSV does not name the columns.
    """

    def is_known(path: str) -> bool:
        return key(path) in image_keys

    table = Captions()
    for file in (root / name for name in FILES if (root / name).is_file()):
        lines, repairs = read_lines(file.read_bytes()), Counter[str]()
        is_csv = file.suffix == ".csv"
        rows = csv_rows(file, lines, COLUMNS, is_known, repairs) if is_csv else _json_rows(lines)
        for line, row in rows:
            table.count += 1
            why = row if isinstance(row, str) else _problem(row, is_known)
            if isinstance(row, str) or why:
                table.rejected.append(BadRow(file.name, line, why))
            elif any(row.get(text) for text in TEXTS):
                table.rows.setdefault(key(row["path"]), []).append(row)
            else:
                repairs["have a path and no text"] += 1
        table.notes += [f"{file.name}, rows that {repair}: {count}" for repair, count in repairs.items()]
    return table


def _problem(row: Row, is_known: Callable[[str], bool]) -> str:
    """Returns what is wrong with a row, "" if nothing is."""
    if why := row_problem(row, is_known):
        return why
    if len(row.get("caption", "")) > MAX_LENGTH:
        return f"a caption of {len(row['caption'])} characters; {MAX_LENGTH} at most are allowed"
    if bool(row.get("question")) != bool(row.get("answer")):
        return "a question needs an answer, and an answer a question"
    return ""


def _json_rows(lines: list[str]) -> Iterator[tuple[int, Row | str]]:
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, f"is not JSON: {error}"
            continue
        if not isinstance(row, dict):
            yield line, f"an object with path and caption is needed; given: {text.strip()[:80]}"
            continue
        values = {name: row[name] for name in ("path", *TEXTS) if row.get(name) is not None}
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong:
            yield line, f"{wrong[0]} must be text; given: {values[wrong[0]]!r:.80}"
        else:
            yield line, {name: value.strip() for name, value in values.items()}
