"""The figure of the theorem: W2 against the number of steps, under the bound and its terms."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sorl.errors import InputError
from sorl.report import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

TERMS = ("discretisation", "flow_matching", "self_consistency")
TERM_NAMES = ("discretisation", "flow-matching", "self-consistency")
TERM_COLORS = drawing.SERIES[3:6]
TERM_ALPHA = 0.45
FLOOR_DASH = (0, (1, 1))
LETTERS_PER_INCH = 15  # of the note


def draw(rows: Rows, note: str) -> Figure:
    """Two panels a dimension, means over seeds.

    Above: W2 (filled, from common noise; open, between independent samples, which cannot fall
    below the grey floor) and both bounds, a colour for each number of updates. Below: the terms of
    the sharper bound after the last update, one on the other, and W2 beneath them.

    Args:
        rows: of `measure`, of all settings.
        note: printed small below: machine, date, scale.

    Raises:
        InputError: there are no rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise InputError("There are no rows to draw: measure at least one setting.")
    dimensions = sorted({int(row["dimension"]) for row in rows})
    figure = Figure(figsize=(1.2 + 2.9 * max(len(dimensions), 2), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, len(dimensions), sharex=True, sharey="row", squeeze=False)
    for (above, below), dimension in zip(panels.T, dimensions, strict=True):
        chosen = [row for row in rows if int(row["dimension"]) == dimension]
        above.set_title(f"{dimension} dimension{'s'[: dimension != 1]}", fontsize=10)
        _levels(above, chosen)
        _stack(below, chosen)
        below.set_xlabel("sampling steps k = 1/h", fontsize=9)
    panels[1, 0].set_ylim(bottom=0)
    panels[0, 0].set_ylabel("W2 to the behaviour")
    panels[1, 0].set_ylabel(f"the same, {_updates(rows)[-1]:,} updates")
    figure.legend(
        handles=_legend(_updates(rows)),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )
    seeds = len({int(row["seed"]) for row in rows})
    note = ". ".join(note.splitlines())
    text = f"Means over {seeds} seed{'s'[: seeds != 1]}. {note}"
    lines = textwrap.wrap(text, int(LETTERS_PER_INCH * figure.get_figwidth()))
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0.03 * len(lines), 1, 1 - 0.03 * len(lines)))  # pyright: ignore[reportCallIssue]
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=7.5, color=drawing.MUTED)
    return figure


def _levels(axes: Axes, rows: Rows) -> None:
    levels = _updates(rows)
    steps, floor = _mean(rows, "w2_floor")
    axes.axhline(
        float(floor.mean()),
        color=drawing.MUTED,
        linewidth=0.9,
        linestyle=FLOOR_DASH,
    )
    for place, updates in enumerate(levels):
        chosen = [row for row in rows if int(row["updates"]) == updates]
        style = drawing.Style.of(place)
        look = {"color": style.color, "linewidth": 1.3}
        steps, distance = _mean(chosen, "w2_common_noise")
        axes.plot(steps, distance, marker=style.marker, markersize=4, **look)
        _, independent = _mean(chosen, "w2")
        axes.plot(
            steps,
            independent,
            marker=style.marker,
            markersize=4,
            linestyle="none",
            markerfacecolor="none",
            color=style.color,
        )
        for name, dash in (("stepwise_bound", "dashed"), ("bound", "dotted")):
            _, bound = _mean(chosen, name)
            axes.plot(steps, bound, linestyle=dash, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _tidy(axes)


def _stack(axes: Axes, rows: Rows) -> None:
    levels = _updates(rows)
    chosen = [row for row in rows if int(row["updates"]) == levels[-1]]
    bottom = np.zeros(1)
    for term, color in zip(TERMS, TERM_COLORS, strict=True):
        steps, value = _mean(chosen, f"stepwise_{term}")
        axes.fill_between(steps, bottom, bottom + value, color=color, alpha=TERM_ALPHA, linewidth=0)
        bottom = bottom + value
    style = drawing.Style.of(len(levels) - 1)
    steps, distance = _mean(chosen, "w2_common_noise")
    axes.plot(steps, distance, color=style.color, marker=style.marker, markersize=4, linewidth=1.3)
    _tidy(axes)


def _legend(levels: Sequence[int]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink = {"color": drawing.MUTED, "linewidth": 1.3}
    styles = [drawing.Style.of(place) for place in range(len(levels))]
    lines = [
        Line2D([], [], color=style.color, marker=style.marker, markersize=4, linewidth=1.3)
        for style in styles
    ]
    for line, updates in zip(lines, levels, strict=True):
        line.set_label(f"{updates:,} updates")
    hollow = {"marker": "o", "markersize": 4, "markerfacecolor": "none", "linestyle": "none"}
    return [
        *lines,
        Line2D([], [], label="W2, common noise", marker="o", markersize=4, **ink),
        Line2D([], [], label="W2, independent samples", color=drawing.MUTED, **hollow),
        Line2D([], [], label="its floor", color=drawing.MUTED, linewidth=0.9, linestyle=FLOOR_DASH),
        *(
            Patch(color=color, alpha=TERM_ALPHA, linewidth=0, label=f"{name} term")
            for name, color in zip(TERM_NAMES, TERM_COLORS, strict=True)
        ),
        Line2D([], [], label="bound, one L as seen: the theorem", linestyle="dotted", **ink),
        Line2D([], [], label="bound, Λ of every step as seen", linestyle="dashed", **ink),
    ]


def _tidy(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = [4.0**power for power in range(8)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=drawing.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def _updates(rows: Rows) -> list[int]:
    return sorted({int(row["updates"]) for row in rows})


def _mean(rows: Rows, column: str) -> tuple[Any, Any]:
    """The numbers of steps, and the mean of a column over the rows of each."""
    steps = sorted({int(row["h"]) for row in rows})
    values = [np.mean([row[column] for row in rows if int(row["h"]) == k]) for k in steps]
    return np.array(steps, float), np.array(values, float)
