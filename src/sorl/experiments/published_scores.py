"""Success rates that others published, in percent, to stand beside ours, marked as theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A published score.

    Attributes:
        success: percent.
        spread: what stands after ± in the source, if anything does.
    """

    success: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.success:g}" if self.spread is None else f"{self.success:g} ± {self.spread:g}"


SOURCE = (
    "published: SORL's paper (arXiv 2505.22866, table 1) as reported by others, 1M updates, 8 seeds"
)

FIVE_TASKS: Mapping[str, Mapping[str, Published]] = {
    environment: {
        **dict(zip(("bc", "iql", "rebrac", "idql", "fql"), map(Published, others), strict=True)),
        "sorl": sorl,
        **({} if ifql is None else {"ifql": Published(ifql)}),
    }
    for environment, others, sorl, ifql in (
        ("antmaze-large-navigate", (11, 53, 81, 21, 79), Published(89, 2), None),
        ("antmaze-giant-navigate", (0, 4, 26, 0, 9), Published(9, 6), None),
        ("humanoidmaze-medium-navigate", (2, 33, 22, 1, 58), Published(64, 4), 60),
        ("humanoidmaze-large-navigate", (1, 2, 2, 1, 4), Published(5, 2), None),
        ("antsoccer-arena-navigate", (1, 8, 0, 12, 60), Published(69, 2), 33),
        ("cube-single-play", (5, 83, 91, 95, 96), Published(97, 1), None),
        ("cube-double-play", (2, 7, 12, 15, 29), Published(25, 3), 14),
        ("scene-play", (5, 28, 41, 46, 56), Published(57, 2), 30),
    )
}
"""Means of five tasks, by environment and method."""

DEFAULT_TASK: Mapping[str, Mapping[str, Published]] = {
    environment: dict(zip(("fql", "iql", "ifql"), map(Published, values), strict=True))
    for environment, values in {
        "antmaze-large-navigate": (80, 48, 24),
        "cube-single-play": (97, 85, 73),
        "cube-double-play": (36, 1, 9),
        "scene-play": (76, 12, 0),
    }.items()
}
"""The default task alone, by a third party."""
