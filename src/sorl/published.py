"""Settings that papers give for an environment whatever the method; algorithms add their own.

SORL (arXiv 2505.22866, appendix) and FQL (arXiv 2502.02538, appendix) use the same discount and the
same way to combine the critic's heads on each environment. Where nothing stands, the discount is
0.99 and the heads are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENVIRONMENTS: Mapping[str, Mapping[str, Any]] = {
    "antmaze-large-navigate": {"target_aggregation": "min"},
    "antmaze-giant-navigate": {"discount": 0.995, "target_aggregation": "min"},
    "humanoidmaze-medium-navigate": {"discount": 0.995},
    "humanoidmaze-large-navigate": {"discount": 0.995},
    "antsoccer-arena-navigate": {"discount": 0.995},
    "cube-single-play": {},
    "cube-double-play": {},
    "scene-play": {},
}


def presets(
    own: Mapping[str, Mapping[str, Any]] | None = None, *, without: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """`ENVIRONMENTS` with an algorithm's own values beside them.

    Args:
        own: the algorithm's values by environment; they go first where both have one.
        without: fields that the algorithm does not have.
    """
    own = own or {}
    merged = {name: {**shared, **own.get(name, {})} for name, shared in ENVIRONMENTS.items()}
    return {
        name: {field: value for field, value in values.items() if field not in without}
        for name, values in merged.items()
    }
