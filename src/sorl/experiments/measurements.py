"""Measurements, each made once and kept: a file of rows named after what was measured.

store/measurements/<target>-<digest>.csv     the rows
store/measurements/<target>-<digest>.json    setting, versions, machine and date
store/measurements/<target>-<digest>/        what an unfinished one goes on from
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sorl import files, provenance, tables
from sorl.errors import InputError
from sorl.experiments.experiment import Measurement, OnProgress
from sorl.experiments.rows import Row
from sorl.experiments.scales import Scale


@dataclasses.dataclass(frozen=True)
class Piece:
    """One setting of a measurement and the file that keeps its rows.

    Attributes:
        setting: what is measured.
        path: the file of rows; beside it, `.json`, where they come from.
    """

    setting: Any
    path: Path

    @property
    def origin(self) -> Path:
        """The file that tells setting, machine and date."""
        return self.path.with_suffix(".json")

    def done(self) -> bool:
        """Whether it was measured."""
        return self.path.exists() and self.origin.exists()


def pieces(store: Path, target: str, measurement: Measurement, scale: Scale) -> list[Piece]:
    """Every setting of a measurement at a scale."""
    return [
        Piece(setting, store / "measurements" / f"{target}-{_digest(setting)}.csv")
        for setting in measurement.settings(scale)
    ]


def measure(piece: Piece, measurement: Measurement, on_progress: OnProgress) -> None:
    """Measure one setting, or go on with it, and keep the rows.

    Raises:
        InputError: the files cannot be written, or whatever the measurement raises.
    """
    unfinished = piece.path.with_suffix("")
    rows = measurement.measure(piece.setting, on_progress, unfinished)
    with files.explained("create", piece.path.parent):
        piece.path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_rows(piece.path, rows)
    origin = {"setting": dataclasses.asdict(piece.setting), **provenance.provenance()}
    files.write_json(piece.origin, origin)
    if unfinished.exists():
        files.remove_folder(unfinished)


def rows(found: list[Piece]) -> Iterator[Row]:
    """The rows of all settings.

    Raises:
        InputError: one was not measured, or its file is damaged.
    """
    for piece in found:
        if not piece.done():
            raise InputError(f"{piece.path} does not exist: it was not measured yet.")
        yield from tables.read_rows(piece.path)


def _digest(setting: Any) -> str:
    content = json.dumps(dataclasses.asdict(setting), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]
