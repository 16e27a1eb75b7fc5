"""What an experiment consists of, whichever figure or table it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sorl.experiments.cells import Cell
from sorl.experiments.rows import Row, Rows
from sorl.experiments.scales import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnProgress = Callable[[int, int], None]

MeasureSetting = Callable[[Any, OnProgress, Path], list[Row]]
"""Measures a setting; may keep in the folder what it needs to go on after having been stopped."""


def _none(scale: Scale) -> list[Any]:
    return []


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Something that is measured here and now, without a run.

    Attributes:
        settings: what is measured at a scale: frozen dataclasses of plain values, each of which
            is measured once and kept.
        measure: measures one of them.
        flops: of the matrix products of one of them, in training.
        check: raises `InputError` where something that measuring needs is not installed.
    """

    settings: Callable[[Scale], Sequence[Any]]
    measure: MeasureSetting
    flops: Callable[[Any], float]
    check: Callable[[], None] = _nothing


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper.

    Attributes:
        title: what it is called.
        published: what the paper's shows, in a sentence or two.
        cells: the runs it needs.
        measurement: what it measures besides.
        findings: what its rows say, in sentences with figures, agreeing with the paper or not.
        draw: the figure; the text is printed small below it.
        table: the table, as Markdown.
        size: how large it is at a scale, in one line.
    """

    title: str
    published: str
    cells: Callable[[Scale], list[Cell]] = _none
    measurement: Measurement | None = None
    findings: Callable[[Rows, Scale], list[str]] | None = None
    draw: Callable[[Rows, str], Figure] | None = None
    table: Callable[[Rows, Scale], str] | None = None
    size: Callable[[Scale], str] = Scale.describe
