"""Growing tables on disk: CSV files and JSON lines that survive a kill at any byte.

A row is one line, and a line counts once its line break is written: a half-written last line is
skipped by readers and removed by the next writer. Numbers come back exactly as they went in.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sorl import files
from sorl.errors import InputError

Cell = float | str
# What `repr` makes of a float or an int, and nothing else that `float` would accept.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|nan|-?inf", re.ASCII)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file, made when missing.

    Columns stand in the order in which they first appeared. A new column widens the header and
    leaves the earlier rows empty there; the file is then rewritten in one step.

    Args:
        path: the file.
        rows: column to value; numbers (also NumPy's) and strings of one line. A column that a
            row lacks stays empty.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """
    rows = list(rows)
    if not rows:
        return
    header = _header(path)
    added = dict.fromkeys(column for row in rows for column in row)
    columns = list(dict.fromkeys([*header, *added]))
    new = [[_to_text(row.get(column, "")) for column in columns] for row in rows]
    if columns == header:
        _append(path, _format(new))
        return
    _, earlier = _parse(path)
    width = len(columns)
    padded = [[*cells, *[""] * (width - len(cells))] for cells in earlier]
    files.write_text(path, _format([columns, *padded, *new]))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file of these rows alone, replacing an earlier one in one step.

    Rows and errors as in `append_rows`.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_to_text(row.get(column, "")) for column in columns] for row in rows]
    files.write_text(path, _format([columns, *cells]) if columns else "")


def read_rows(path: Path) -> list[dict[str, Cell]]:
    """The rows of a CSV file: numbers as floats, the rest as text, empty cells left out.

    A missing file has no rows.

    Raises:
        InputError: the file is damaged or unreadable; the sentence names the line.
    """
    header, rows = _parse(path)
    return [
        {column: _from_text(cell) for column, cell in zip(header, row, strict=True) if cell}
        for row in rows
    ]


def rewind_rows(path: Path, update: int) -> None:
    """Drop the rows of a CSV file whose `update` is after `update`, in one step."""
    keep_rows(path, lambda row: _update(row, path) <= update)


def keep_rows(path: Path, wanted: Callable[[Mapping[str, str]], bool]) -> None:
    """Drop the rows of a CSV file that are not wanted, in one step."""
    header, rows = _parse(path)
    if not path.exists():
        return
    kept = [row for row in rows if wanted(dict(zip(header, row, strict=True)))]
    files.write_text(path, _format([header, *kept]) if header else "")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one JSON object as a line."""
    _append(path, json.dumps(dict(value)) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a missing file has none.

    Raises:
        InputError: a line is no JSON object; the sentence names it.
    """
    values = []
    for number, line in enumerate(_complete(path).split("\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{path} is damaged: line {number} is no JSON object; remove it.")
        values.append(value)
    return values


def rewind_lines(path: Path, update: int) -> None:
    """Drop the JSON lines whose `update` is after `update`, in one step."""
    values = read_lines(path)
    if path.exists():
        kept = [value for value in values if _update(value, path) <= update]
        files.write_text(path, "".join(json.dumps(value) + "\n" for value in kept))


def _complete(path: Path) -> str:
    """The text of all lines that were written to their end."""
    if not path.exists():
        return ""
    with files.explained("read", path):
        content = path.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is damaged: byte {error.start} is no UTF-8 text; restore it from a copy."
        ) from error


def _header(path: Path) -> list[str]:
    """The column names, without reading the rows: a long table grows as fast as a short one."""
    if not path.exists():
        return []
    with files.explained("read", path), path.open("rb") as file:
        line = file.readline()
    return _parse_text(line.decode("utf-8", "replace"), path)[0] if line.endswith(b"\n") else []


def _parse(path: Path) -> tuple[list[str], list[list[str]]]:
    return _parse_text(_complete(path), path)


def _parse_text(text: str, path: Path) -> tuple[list[str], list[list[str]]]:
    lines = text.split("\n")[:-1]
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is damaged: it is no CSV file ({error}).") from error
    if not rows:
        return [], []
    header = rows[0]
    if len(set(header)) != len(header) or not all(header):
        raise InputError(f"{path} is damaged: its header must be a line of different names.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(
                f"{path} is damaged: line {number} has {len(row)} cells where the header has "
                f"{len(header)}; remove or mend the line."
            )
    return header, rows[1:]


def _format(rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Add whole lines in one write, after removing a half line that a kill left."""
    with files.explained("write", path), path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode("utf-8"))


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        if any(character in value for character in "\r\n\0"):
            raise ValueError(f"A cell is one line of text, not {value!r}.")
        return value
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return str(int(value))
    return repr(float(value))


def _from_text(cell: str) -> Cell:
    return float(cell) if _NUMBER.fullmatch(cell) else cell


def _update(row: Mapping[str, Any], path: Path) -> float:
    try:
        return float(row["update"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: a row has no update; remove or mend it.") from error
