"""Reads CSV files as people write them: any delimiter and encoding of a spreadsheet, and rows that cannot be used.

A row that cannot be used comes as a text that says why, in place of its cells.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_LINES = 50  # of one row: a quote that is still open then was never closed

Row = dict[str, str]


@dataclass(frozen=True)
class Columns:
    """Which columns a file may have beside `path`.

    names: all that are read. needed: the first line must have all names of one of these sets. words: the same, for a
    person. texts: those of `names` that hold sentences, with delimiters in them perhaps.
    """

    names: tuple[str, ...]
    needed: tuple[frozenset[str], ...]
    words: str
    texts: tuple[str, ...] = ()

    def complete(self, names: Collection[str]) -> bool:
        return "path" in names and any(needed <= {*names} for needed in self.needed)


def read_lines(content: bytes) -> list[str]:
    """Returns lines with their ends; bytes that are not UTF-8 become surrogates (see `row_problem`)."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Excel's "Unicode text"
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return list(io.StringIO(text, newline=""))


def row_problem(row: Row, is_known: Callable[[str], bool]) -> str:
    """Returns what is wrong with the bytes that a row was read from, or with its path, "" if nothing is.

    is_known: whether a text is the path of an image.
    """
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError as error:
        excerpt = error.object[max(0, error.start - 20) : error.start + 20].encode("utf-8", "backslashreplace").decode()
        return f"is not UTF-8 at {excerpt!r}; save the file as UTF-8 (in Excel: CSV UTF-8)"
    if not row.get("path"):
        return f"has no path; it has: {', '.join(name for name in row if row[name]) or 'nothing'}"
    if not is_known(row["path"]):
        return f"there is no image {row['path']!r} in the folder"
    return ""


def csv_rows(
    file: Path, lines: list[str], allowed: Columns, is_known: Callable[[str], bool], repairs: Counter[str]
) -> Iterator[tuple[int, Row | str]]:
    """Yields the number of a row's first line, and the row or what is wrong with it.

    is_known: whether a text is the path of an image. repairs: counts what was repaired.
    Raises ValueError if the first line does not name the columns.
    """
    first, delimiter, names = _header(file, lines, allowed)
    position = first + 1
    while position < len(lines):
        line = position + 1
        cells, num_lines = _record(lines, position, delimiter, is_known)
        position += num_lines
        if isinstance(cells, str):
            yield line, cells
        elif any(cell.strip() for cell in cells):
            yield line, _fit(cells, names, delimiter, allowed, repairs)


def _header(file: Path, lines: list[str], allowed: Columns) -> tuple[int, str, list[str]]:
    """Returns the position of the line that names the columns, the delimiter and the names."""
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("sep=")), None)
    header = "" if first is None else lines[first].strip()
    for delimiter in ",;\t":
        columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        while columns and not columns[-1]:
            columns.pop()
        if first is not None and allowed.complete(columns):
            return first, delimiter, columns
    raise ValueError(
        f"{file}, line {1 if first is None else first + 1}: the first line has to name the columns: path, and "
        f"{allowed.words}, with commas, semicolons or tabs between them; given: {header[:200]!r}"
    )


def _record(
    lines: list[str], position: int, delimiter: str, is_known: Callable[[str], bool]
) -> tuple[list[str] | str, int]:
    """Returns the cells of the row that begins at `position`, or what is wrong with it, and how many lines it takes.

    A quoted cell may hold line breaks. If the next line begins with an image's path, its quote was never closed.
    """
    text = ""
    for num_lines, line in enumerate(lines[position : position + MAX_LINES], start=1):
        if text and is_known(line.partition(delimiter)[0].strip(' "')):
            break
        text += line
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []), num_lines
        except csv.Error as error:
            if "unexpected end of data" not in str(error):
                return f"is not CSV: {error}", num_lines
    return "a quote is opened and not closed; write a quote inside of a quoted text twice", 1


def _fit(cells: list[str], columns: list[str], delimiter: str, allowed: Columns, repairs: Counter[str]) -> Row | str:
    """Returns the row, or what is wrong with it.

    Surplus cells are joined if the last column is the only text: the text has a delimiter in it and no quotes around.
    """
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) > len(columns):
        if [name for name in columns if name in allowed.texts] != columns[-1:]:
            advice = f"put quotes around a text that has a {delimiter!r} in it"
            return f"{len(cells)} cells for the columns {', '.join(columns)}; {advice}"
        last = len(columns) - 1
        cells = [*cells[:last], delimiter.join(cells[last:])]
        repairs[f"have an unquoted {delimiter!r} in the last column, which was read as part of the {columns[-1]}"] += 1
    row = zip(columns, cells, strict=False)  # a short row lacks its last cells
    return {name: cell.strip() for name, cell in row if name in ("path", *allowed.names)}
