"""One look for every figure: size, colours, axes, and SVG that takes its colours from the page.

Matplotlib is used through its object interface alone and imported when the first figure is drawn.
Text stays text. Every colour of the theme leaves as a CSS variable, so that a page in dark mode
recolours its figures. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from sorl.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2429"
MUTED = "#5b6570"
GRID = "#dfe4e9"
PAPER = "#fefefe"
# Told apart by people who see fewer colours (after Okabe and Ito), and by their markers.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MARKER_TEXT = ("●", "■", "▲", "◆", "▼", "✚", "✖")
DASHES = ("solid", "dashed", "dotted")
MISSING = "—"

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    color: f"--series-{position}" for position, color in enumerate(SERIES)
}


class Style(NamedTuple):
    """How one series looks: the same in every figure and in the legend."""

    color: str
    marker: str
    marker_text: str
    dash: str

    @classmethod
    def of(cls, position: int) -> Style:
        """Style of the series at a position; 21 differ before they repeat."""
        color = position % len(SERIES)
        dash = DASHES[position // len(SERIES) % len(DASHES)]
        return cls(SERIES[color], MARKERS[color], MARKER_TEXT[color], dash)


def draw(width: float, height: float, label: str, paint: Callable[[Axes], None]) -> str:
    """A figure of one panel as an `<svg>` element for an HTML page.

    Args:
        width: width in units in which text is 12 high.
        height: height in the same units.
        label: what the figure shows, for those who cannot see it; no other figure of the page
            has the same, for it also keeps the names within the figure apart.
        paint: draws onto the axes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",  # only measures; the page chooses what is shown
        "font.size": 12,
        "text.color": INK,
        "text.parse_math": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "svg.fonttype": "none",
        "svg.hashsalt": label,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nobody's matplotlibrc may change a report
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0.0)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        paint(axes)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.print_svg(text, metadata=nothing)
    return _for_the_page(text.getvalue(), width, height, label)


def _for_the_page(svg: str, width: float, height: float, label: str) -> str:
    """Drop what HTML does not need, and let the page decide size, colours and font."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # such names repeat from figure to figure
    body = body.replace("xlink:href", "href")
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body).strip()
    box = f"0 0 {width:g} {height:g}"
    return f'<svg class="figure" role="img" aria-label="{escape(label)}" viewBox="{box}">{body}'


def updates_axis(axes: Axes) -> None:
    """The horizontal axis of everything that happens during training."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("updates")


def percent_axis(axes: Axes) -> None:
    """The vertical axis of a rate: always 0 to 100%, so that figures can be compared."""
    from matplotlib.ticker import FuncFormatter

    axes.set_ylim(-0.03, 1.04)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0)


def short(value: float) -> str:
    """A number that fits under a tick: 150k, 1.5M, 0.002."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A rate in percent with at most one decimal: 92%, 92.5%; a dash where there is none."""
    if math.isnan(value):
        return MISSING
    return f"{round(100 * value, 1):g}%"


def milliseconds(value: float) -> str:
    """A duration with two or three telling digits: 0.31, 4.5, 120; a dash where there is none."""
    if math.isnan(value):
        return MISSING
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def percent_interval(estimate: Estimate) -> str:
    """A rate with its interval: 92% [88, 95]; without one where there is none."""
    text = percent(float(estimate.value))
    if math.isnan(float(estimate.low)):
        return text
    ends = (f"{round(100 * float(end), 1):g}" for end in (estimate.low, estimate.high))
    return f"{text} [{', '.join(ends)}]"
