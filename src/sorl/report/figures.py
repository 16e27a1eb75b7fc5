"""The figures of a report, each as an `<svg>` element: curves, heat maps, success against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sorl.report import drawing
from sorl.report.statistics import Estimate
from sorl.types import Budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

Values = NDArray[np.float64]

_BLUES = ("#eaf2f8", "#8fbbdb", "#0f5c94")
_ORANGES = ("#fbf0e4", "#eeb27a", "#a84a05")


class Curve(NamedTuple):
    """A line of a figure.

    Attributes:
        style: position of its style, see `drawing.Style.of`.
        updates: horizontal positions, ascending, `[points]`.
        estimate: values with interval, each `[points]`; NaN leaves a gap.
    """

    style: int
    updates: Values
    estimate: Estimate


class Cloud(NamedTuple):
    """The budgets of one run in the plane of time and success.

    Attributes:
        style: position of its style, see `drawing.Style.of`.
        labels: name of each point, `[points]`.
        milliseconds: time of one decision, `[points]`; points without it are left out.
        success: success with interval, each `[points]`.
    """

    style: int
    labels: Sequence[str]
    milliseconds: Values
    success: Estimate


def success_curves(curves: Sequence[Curve], label: str) -> str:
    """Success against updates, with a band where there is an interval."""

    def paint(axes: Axes) -> None:
        for curve in curves:
            _curve(axes, curve, markers=True)
        drawing.percent_axis(axes)
        drawing.updates_axis(axes)

    return drawing.draw(440, 270, label, paint)


def metric_curves(curves: Sequence[Curve], label: str) -> str:
    """A training metric against updates; logarithmic where it is positive and falls far."""

    def paint(axes: Axes) -> None:
        for curve in curves:
            _curve(axes, curve, markers=False)
        values = np.concatenate([curve.estimate.value for curve in curves])
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0 and values.max() > 30 * values.min():
            _log_axis(axes, "y")
        else:
            from matplotlib.ticker import FuncFormatter, MaxNLocator

            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.short(value)))
        axes.grid(axis="y")
        axes.tick_params(axis="y", length=0)
        drawing.updates_axis(axes)

    return drawing.draw(340, 205, label, paint)


def success_heat_map(budgets: Sequence[Budget], success: Estimate, label: str) -> str:
    """Success on the grid of steps x best-of; colour from 0 to 100%, ends of the interval below."""
    texts = []
    for value, low, high in zip(*success, strict=True):
        interval = "" if np.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}"
        texts.append((drawing.percent(round(value, 2)), interval))
    return _heat_map(budgets, success.value, texts, _BLUES, label)


def latency_heat_map(budgets: Sequence[Budget], milliseconds: Values, label: str) -> str:
    """Milliseconds of one decision on the grid of steps x best-of; colour on a log scale."""
    positive = np.where(milliseconds > 0, milliseconds, np.nan)
    shade = np.full_like(positive, np.nan)
    if np.isfinite(positive).any():
        low, high = np.log(np.nanmin(positive)), np.log(np.nanmax(positive))
        shade = (np.log(positive) - low) / max(high - low, np.log(2.0))
    texts = [(drawing.milliseconds(value), "") for value in positive]
    return _heat_map(budgets, shade, texts, _ORANGES, label)


def success_against_time(clouds: Sequence[Cloud], label: str) -> str:
    """Success against the time of one decision.

    Filled points lie on their run's Pareto front, which a line joins: no other budget of the run
    is both as fast and as successful. Hollow points are dominated.
    """

    def paint(axes: Axes) -> None:
        texts, spots, times = [], [], []
        for cloud in clouds:
            style = drawing.Style.of(cloud.style)
            front = pareto_front(cloud.milliseconds, cloud.success.value)
            order = np.flatnonzero(front)[np.argsort(cloud.milliseconds[front], kind="stable")]
            axes.plot(
                cloud.milliseconds[order], cloud.success.value[order], color=style.color, zorder=2,
                linewidth=1.4, linestyle=style.dash, alpha=0.7,
            )  # fmt: skip
            for i in np.flatnonzero(np.isfinite(cloud.milliseconds + cloud.success.value)).tolist():
                x, y = float(cloud.milliseconds[i]), float(cloud.success.value[i])
                axes.vlines(
                    x, cloud.success.low[i], cloud.success.high[i], color=style.color, alpha=0.35,
                    linewidth=1.4, zorder=1,
                )  # fmt: skip
                axes.plot(
                    x, y, style.marker, color=style.color, markersize=7, zorder=3,
                    markerfacecolor=style.color if front[i] else drawing.PAPER,
                )  # fmt: skip
                weight = "bold" if front[i] else "normal"
                texts.append(axes.text(x, y, cloud.labels[i], fontsize=11, fontweight=weight))
                spots.append((x, y))
                times.append(x)
        drawing.percent_axis(axes)
        if times and max(times) > 3 * min(times):
            _log_axis(axes, "x")
        axes.margins(x=0.1)
        axes.set_xlabel("milliseconds per decision")
        _place(axes, texts, spots)

    return drawing.draw(440, 310, label, paint)


def pareto_front(cost: Values, value: Values) -> NDArray[np.bool_]:
    """Which points no other point beats: none costs as little and is worth as much, one strictly.

    Args:
        cost: less is better, `[points]`.
        value: more is better, `[points]`.

    Returns:
        `[points]`; False where a cost or a value is NaN.
    """
    as_good = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = as_good & ((cost[:, None] < cost) | (value[:, None] > value))
    return np.isfinite(cost) & np.isfinite(value) & ~better.any(axis=0)


def _curve(axes: Axes, curve: Curve, *, markers: bool) -> None:
    style = drawing.Style.of(curve.style)
    value, low, high = curve.estimate
    axes.plot(
        curve.updates, value, color=style.color, linestyle=style.dash,
        marker=style.marker if markers else "", linewidth=1.8 if markers else 1.4,
    )  # fmt: skip
    if not markers:  # a point without a neighbour makes no line
        there = np.isfinite(value)
        alone = there & ~np.append(False, there[:-1]) & ~np.append(there[1:], False)
        axes.plot(curve.updates[alone], value[alone], style.marker, color=style.color, markersize=4)
    known = np.isfinite(low) & np.isfinite(high)
    if known.sum() == 1:
        axes.vlines(curve.updates[known], low[known], high[known], color=style.color, alpha=0.4)
    elif known.any():
        axes.fill_between(
            curve.updates, low, high, where=known, color=style.color, alpha=0.16, linewidth=0
        )


def _log_axis(axes: Axes, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: drawing.short(value)))
    axis.set_minor_locator(NullLocator())


def _heat_map(
    budgets: Sequence[Budget],
    shade: Values,
    texts: Sequence[tuple[str, str]],
    colors: Sequence[str],
    label: str,
) -> str:
    columns = sorted({budget.steps for budget in budgets})
    rows = sorted({budget.best_of for budget in budgets})

    def paint(axes: Axes) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.patches import Rectangle

        scale = LinearSegmentedColormap.from_list("scale", list(colors))
        for budget, amount, (value, interval) in zip(budgets, shade, texts, strict=True):
            x, y = columns.index(budget.steps), rows.index(budget.best_of)
            color, ink = drawing.GRID, drawing.MUTED
            if np.isfinite(amount):
                color = scale(float(np.clip(amount, 0.0, 1.0)))
                ink = "#ffffff" if amount > 0.6 else "#101418"
            axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=color, linewidth=0))
            shift = 0.13 if interval else 0.0
            axes.text(
                x, y + shift, value, color=ink, ha="center", va="center_baseline",
                fontsize=13, fontweight="bold",
            )  # fmt: skip
            axes.text(
                x, y - 0.23, interval, color=ink, ha="center", va="center_baseline", fontsize=10
            )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_xticks(range(len(columns)), [str(steps) for steps in columns])
        axes.set_yticks(range(len(rows)), [str(best_of) for best_of in rows])
        axes.set_xlabel("steps")
        axes.set_ylabel("best of")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return drawing.draw(400, 60 + 52 * max(len(rows), 2), label, paint)


def _place(axes: Axes, texts: Sequence[Text], spots: Sequence[tuple[float, float]]) -> None:
    """Move each label beside its point, where it covers neither a point nor another label.

    A label for which there is no such place is taken away.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout must be known to know where points are
    pixels = [axes.transData.transform(spot) for spot in spots]
    inside = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels]
    for text, (x, y) in zip(texts, pixels, strict=True):
        size = text.get_window_extent()
        width, height = size.width, size.height
        for left, bottom in (
            (x - width / 2, y + 8),
            (x - width / 2, y - 8 - height),
            (x + 9, y - height / 2),
            (x - 9 - width, y - height / 2),
            (x + 6, y + 6),
            (x - 6 - width, y + 6),
            (x + 6, y - 6 - height),
            (x - 6 - width, y - 6 - height),
        ):
            box = Bbox.from_bounds(left, bottom, width, height)
            clear = not any(box.overlaps(other) for other in taken)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
            if clear and within:
                across, up = axes.transData.inverted().transform((left, bottom)).tolist()
                text.set_position((across, up))
                taken.append(box)
                break
        else:
            text.set_visible(False)
