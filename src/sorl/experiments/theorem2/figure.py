"""The figure of the theorem: W2 against the number of steps, under the bound and its terms."""

from __future__ import annotations

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
TERM_COLORS = drawing.SERIES[3:6]


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
    panels[0, 0].set_ylabel("W2 to the behaviour")
    panels[1, 0].set_ylabel(f"the same, {_updates(rows)[-1]:,} updates")
    figure.supxlabel("sampling steps k = 1/h", fontsize=10, color=drawing.INK)
    handles = {
        label: handle
        for axes in (panels[0, 0], panels[1, 0])
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )
    seeds = len({int(row["seed"]) for row in rows})
    text = f"Means over {seeds} seed{'s'[: seeds != 1]}. {note}"
    figure.text(0.005, -0.005, text, fontsize=7.5, color=drawing.MUTED, va="top")
    return figure


def _levels(axes: Axes, rows: Rows) -> None:
    levels = _updates(rows)
    steps, floor = _mean(rows, "w2_floor")
    axes.axhline(
        float(floor.mean()),
        color=drawing.MUTED,
        linewidth=0.9,
        linestyle=(0, (1, 1)),
        label="floor of W2 between samples",
    )
    for place, updates in enumerate(levels):
        chosen = [row for row in rows if int(row["updates"]) == updates]
        style = drawing.Style.of(place)
        look = {"color": style.color, "linewidth": 1.3}
        steps, distance = _mean(chosen, "w2_common_noise")
        axes.plot(
            steps, distance, marker=style.marker, markersize=4, label=f"{updates:,} updates", **look
        )
        _, independent = _mean(chosen, "w2")
        axes.plot(
            steps,
            independent,
            marker=style.marker,
            markersize=4,
            linestyle="none",
            markerfacecolor="none",
            color=style.color,
            label=_once("W2 between samples", place),
        )
        for name, dash, label in (
            ("stepwise_bound", "dashed", "bound, Λ of every step"),
            ("bound", "dotted", "bound, one L (the theorem)"),
        ):
            _, bound = _mean(chosen, name)
            axes.plot(steps, bound, linestyle=dash, label=_once(label, place), **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _tidy(axes)


def _stack(axes: Axes, rows: Rows) -> None:
    levels = _updates(rows)
    chosen = [row for row in rows if int(row["updates"]) == levels[-1]]
    bottom = np.zeros(1)
    for term, color in zip(TERMS, TERM_COLORS, strict=True):
        steps, value = _mean(chosen, f"stepwise_{term}")
        axes.fill_between(
            steps,
            bottom,
            bottom + value,
            color=color,
            alpha=0.45,
            linewidth=0,
            label=f"{term.replace('_', '-' if term.startswith('self') else ' ')} term",
        )
        bottom = bottom + value
    style = drawing.Style.of(len(levels) - 1)
    steps, distance = _mean(chosen, "w2_common_noise")
    axes.plot(steps, distance, color=style.color, marker=style.marker, markersize=4, linewidth=1.3)
    axes.set_ylim(bottom=0)
    _tidy(axes)


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


def _once(label: str, place: int) -> str:
    """Named in the legend by the first level alone; matplotlib leaves out names with a `_`."""
    return label if place == 0 else f"_{label}"
