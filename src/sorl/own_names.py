"""Names of environments that are not OGBench's: `minari:NAME` and `gym:ID`."""

from __future__ import annotations

SCHEMES = ("minari:", "gym:")


def is_own(environment: str) -> bool:
    """Whether it is an environment in its own units, see `sorl.own_environments`."""
    return environment.startswith(SCHEMES)
