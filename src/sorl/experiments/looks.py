"""One look for all figures of the experiments: panels side by side, intervals, a note below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sorl.experiments.rows import Rows
from sorl.report.drawing import SERIES, Style, percent, percent_interval
from sorl.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SERIES", "Style", "line", "panels", "percent", "percent_interval", "success_axis"]

_MOST_ACROSS = 4
_PER_INCH = 17  # letters of a note


def panels(titles: Sequence[str], note: str, *, width: float = 4.6) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title and a note below, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(_MOST_ACROSS, max(1, len(titles)))
    down = -(-len(titles) // across)
    width = max(6.4, width * across)
    figure = Figure(figsize=(width, 3.4 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    every = list(np.ravel(figure.subplots(max(1, down), across, squeeze=False)))
    for axes, title in zip(every, titles, strict=False):
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    for axes in every[len(titles) :]:
        axes.set_visible(False)
    lines = (textwrap.fill(part, int(_PER_INCH * width)) for part in note.splitlines())
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.35", x=0.01, ha="left")
    return figure, every[: len(titles)]


def of_last(parts: Sequence[Rows]) -> str:
    """What the last evaluation alone says; means of three lag behind where success still rises."""
    values = (percent(float(part.last().estimate().value)) for part in parts)
    return f"(the last evaluation alone: {', '.join(values)})"


def success_axis(axes: Axes) -> None:
    """Success in percent, always from 0 to 100, so that panels can be compared."""
    axes.set(ylim=(-3, 103), ylabel="success, %")


def line(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    position: int,
    label: str,
    star: bool = False,
) -> None:
    """Success in percent against x with intervals; stars without a line for best-of-N."""
    style = Style.of(position)
    value, low, high = (
        100 * np.array([float(getattr(estimate, name)) for estimate in estimates])
        for name in ("value", "low", "high")
    )
    reach = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
    axes.errorbar(
        np.asarray(x, float),
        value,
        reach,
        color=style.color,
        marker="*" if star else style.marker,
        markersize=12 if star else 5,
        linestyle="none" if star else style.dash,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )
