"""Units learnt from data: the range of every action entry, the statistics of observations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sorl.data.checks import ACTION_TOLERANCE
from sorl.errors import InputError
from sorl.units import Units

Bound = float | Sequence[float] | np.ndarray | None
"""One number for all entries, one for each, or None to learn it."""


def learn_units(
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    action_low: Bound = None,
    action_high: Bound = None,
    standardize: bool = False,
    source: str = "data",
    remedy: str = "widen it, or leave it out to learn it",
) -> Units:
    """The units in which actions fill [-1, 1] and observations, if asked for, have unit variance.

    Args:
        observations: `[rows, observation_size]`, finite.
        actions: `[rows, action_size]`, finite, in the user's units.
        action_low: least value of every action entry, one number for all or one for each; without
            it the least in the data.
        action_high: largest value likewise.
        standardize: whether observations are to be standardised by their mean and standard
            deviation; a constant entry becomes 0.
        source: file or origin that messages begin with.
        remedy: what to do where actions are outside the bounds.

    Raises:
        InputError: bounds that are no numbers or of the wrong number, or actions outside them.
    """
    size = actions.shape[1]
    low = _bound(source, "action_low", action_low, actions.min(axis=0), size)
    high = _bound(source, "action_high", action_high, actions.max(axis=0), size)
    if action_low is not None and action_high is not None and (low > high).any():
        column = int(np.argmax(low > high))
        raise InputError(
            f"{source}: action_low {low[column]:g} of action entry {column} is above action_high "
            f"{high[column]:g}: give the least value as action_low."
        )
    margin = ACTION_TOLERANCE * np.maximum((high - low) / 2, 0)
    outside = (actions < low - margin) | (actions > high + margin)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"{source}: actions, row {row}, column {column}: {actions[row, column]:g} is outside "
            f"the given range [{low[column]:g}, {high[column]:g}]; {remedy}."
        )
    usual = (low == -1).all() and (high == 1).all()
    statistics = {}
    if standardize:
        spread = observations.std(axis=0, dtype=np.float64)
        varies = observations.min(axis=0) != observations.max(axis=0)
        statistics = {
            "observation_mean": _numbers(observations.mean(axis=0, dtype=np.float64)),
            "observation_scale": _numbers(np.where(varies & (spread > 0), spread, 1.0)),
        }
    bounds = {} if usual else {"action_low": _numbers(low), "action_high": _numbers(high)}
    return Units(**bounds, **statistics)


def _numbers(array: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, array))


def _bound(source: str, name: str, given: Bound, learnt: np.ndarray, size: int) -> np.ndarray:
    if given is None:
        return learnt.astype(np.float32)
    try:
        bound = np.atleast_1d(np.asarray(given, np.float32))
    except (TypeError, ValueError):
        raise InputError(
            f"{source}: {name} is {given!r}: give one number for all of the {size} action entries, "
            "or one for each."
        ) from None
    if bound.shape not in ((1,), (size,)) or not np.isfinite(bound).all():
        raise InputError(
            f"{source}: {name} has {bound.size} number(s): give one for all of the {size} action "
            "entries, or one for each, all finite."
        )
    return np.broadcast_to(bound, (size,)).astype(np.float32)
