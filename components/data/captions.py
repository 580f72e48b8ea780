"""Reads captions.csv and captions.jsonl as people write them; a row that cannot be used is named and left out."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.data.entries import BadRow

FILES = ("captions.csv", "captions.jsonl")
TEXTS = ("caption", "question", "answer")
MAX_LENGTH = 2000  # characters of a caption
MAX_LINES = 50  # of one row: a quote that is still open then was never closed

Row = dict[str, str]


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
        lines, repairs = _lines(file.read_bytes()), Counter[str]()
        is_csv = file.suffix == ".csv"
        rows = _csv_rows(file, lines, is_known, repairs) if is_csv else _json_rows(lines)
        for line, row in rows:
            table.count += 1
            why = row if isinstance(row, str) else _problem(row, is_known)
            if isinstance(row, str) or why:
                table.rejected.append(BadRow(file.name, line, why))
            elif any(row.get(text) for text in TEXTS):
                table.rows.setdefault(key(row["path"]), []).append(row)
            else:
                repairs["have a path and no text"] += 1
        table.notes += [f"{file.name}, rows that {what}: {count}" for what, count in repairs.items()]
    return table


def _lines(content: bytes) -> list[str]:
    """Returns lines with their ends; bytes that are not UTF-8 become surrogates, by which `_problem` finds them."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Excel's "Unicode text"
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return list(io.StringIO(text, newline=""))


def _problem(row: Row, is_known: Callable[[str], bool]) -> str:
    """Returns what is wrong with a row, "" if nothing is."""
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError as error:
        written = error.object[max(0, error.start - 20) : error.start + 20].encode("utf-8", "backslashreplace").decode()
        return f"is not UTF-8 at {written!r}; save the file as UTF-8 (in Excel: CSV UTF-8)"
    if not row.get("path"):
        return f"has no path; it has: {', '.join(name for name in row if row[name]) or 'nothing'}"
    if not is_known(row["path"]):
        return f"there is no image {row['path']!r} in the folder"
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


def _csv_rows(
    file: Path, lines: list[str], is_known: Callable[[str], bool], repairs: Counter[str]
) -> Iterator[tuple[int, Row | str]]:
    """Yields the number of a row's first line, and the row or what is wrong with it."""
    first, delimiter, columns = _header(file, lines)
    position = first + 1
    while position < len(lines):
        line = position + 1
        cells, taken = _record(lines, position, delimiter, is_known)
        position += taken
        if isinstance(cells, str):
            yield line, cells
        elif any(cell.strip() for cell in cells):
            yield line, _fit(cells, columns, delimiter, repairs)


def _header(file: Path, lines: list[str]) -> tuple[int, str, list[str]]:
    """Returns the position of the line that names the columns, the delimiter and the names."""
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("sep=")), None)
    header = "" if first is None else lines[first].strip()
    for delimiter in ",;\t":
        columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        while columns and not columns[-1]:
            columns.pop()
        if first is not None and "path" in columns and ("caption" in columns or {"question", "answer"} <= {*columns}):
            return first, delimiter, columns
    raise ValueError(
        f"{file}, line {1 if first is None else first + 1}: the first line has to name the columns: path, and "
        f"caption or question and answer, with commas, semicolons or tabs between them; given: {header[:200]!r}"
    )


def _record(
    lines: list[str], position: int, delimiter: str, is_known: Callable[[str], bool]
) -> tuple[list[str] | str, int]:
    """Returns the cells of the row that begins at `position`, or what is wrong with it, and how many lines it takes.

    A quoted cell may hold line breaks. It is taken as never closed if the next line begins with an image's path.
    """
    text = ""
    for taken, line in enumerate(lines[position : position + MAX_LINES], start=1):
        if text and is_known(line.partition(delimiter)[0].strip(' "')):
            break
        text += line
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []), taken
        except csv.Error as error:
            if "unexpected end of data" not in str(error):
                return f"is not CSV: {error}", taken
    return "a quote is opened and not closed; write a quote inside of a quoted text twice", 1


def _fit(cells: list[str], columns: list[str], delimiter: str, repairs: Counter[str]) -> Row | str:
    """Returns the row, or what is wrong with it.

    Surplus cells are joined if the last column is the only text: the text has a delimiter in it and no quotes around.
    """
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) > len(columns):
        if [name for name in columns if name in TEXTS] != columns[-1:]:
            advice = f"put quotes around a text that has a {delimiter!r} in it"
            return f"{len(cells)} cells for the columns {', '.join(columns)}; {advice}"
        last = len(columns) - 1
        cells = [*cells[:last], delimiter.join(cells[last:])]
        repairs[f"have an unquoted {delimiter!r} in the last column, which was read as part of the {columns[-1]}"] += 1
    row = zip(columns, cells, strict=False)  # a short row lacks its last cells
    return {name: cell.strip() for name, cell in row if name in ("path", *TEXTS)}
