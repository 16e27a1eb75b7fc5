"""CSV: a header line of names, one row a step; commas, semicolons or tabs between the cells.

Truth values may be written 0 and 1, true and false. Only the columns that are asked for must hold
numbers.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from sorl.data.importing.log import Log, damaged_if_it_raises
from sorl.errors import InputError

_ROWS_AT_ONCE = 1 << 15
_WORDS = {"true": "1", "false": "0"}


@dataclasses.dataclass(frozen=True)
class CsvLog(Log):
    """A table as text.

    Attributes:
        delimiter: what stands between two cells.
    """

    delimiter: str = ","

    def stretches(self, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """One stretch: all rows."""
        places = [list(self.keys).index(name) for name in wanted]
        parts: list[list[np.ndarray]] = []
        cells, lines, width = [], [], len(self.keys)
        with damaged_if_it_raises(self.path), _opened(self.path) as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            next(reader)
            for row in reader:
                if not row:
                    continue  # an empty line, as editors leave one at the end
                if len(row) != width:
                    raise InputError(
                        f"{self.path}: line {reader.line_num} has {len(row)} cells where the "
                        f"header has {width}; mend or remove the line."
                    )
                cells.append([row[place] for place in places])
                lines.append(reader.line_num)
                if len(cells) == _ROWS_AT_ONCE:
                    parts.append(self._columns(cells, wanted, lines))
                    cells, lines = [], []
            if cells or not parts:
                parts.append(self._columns(cells, wanted, lines))
        columns = map(np.concatenate, zip(*parts, strict=True))
        yield dict(zip(wanted, columns, strict=True))

    def _columns(
        self, cells: list[list[str]], wanted: Sequence[str], lines: Sequence[int]
    ) -> list[np.ndarray]:
        columns = zip(*cells, strict=True) if cells else [()] * len(wanted)
        return [
            self._column(column, name, lines) for name, column in zip(wanted, columns, strict=True)
        ]

    def _column(self, cells: Sequence[str], name: str, lines: Sequence[int]) -> np.ndarray:
        # Whole numbers stay so: labels of 17 digits would not differ as floats.
        for kind in (np.int64, np.float64):
            with contextlib.suppress(ValueError, OverflowError):
                return np.array(cells, kind)
        pairs = zip(cells, lines, strict=True)
        return np.array([self._number(cell, name, line) for cell, line in pairs])

    def _number(self, cell: str, name: str, line: int) -> float:
        try:
            return float(_WORDS.get(cell.strip().lower(), cell))
        except ValueError:
            raise InputError(
                f"{self.path}: {name}, line {line}: {cell[:40]!r} is no number; mend or remove the "
                "line (labels of episodes must be numbers too)."
            ) from None


def open_log(path: Path) -> CsvLog:
    """Read the header.

    Raises:
        InputError: the file cannot be read, or its header is no line of different names.
    """
    with damaged_if_it_raises(path), _opened(path) as file:
        line = file.readline()
        delimiter = max(",;\t", key=line.count)
        header = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    names = [name.strip() for name in header]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise InputError(
            f"{path}: the first line must be a header of different names, such as "
            "observation_0,observation_1,action_0,reward,terminated,truncated."
        )
    return CsvLog(path, dict.fromkeys(names, ()), delimiter=delimiter)


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")
