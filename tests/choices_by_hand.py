"""Choices among candidates by plain loops."""

from __future__ import annotations

import math

import numpy as np


def by_hand(rule: str, parameter: float, actions: np.ndarray, scores: np.ndarray) -> set[int]:
    """Every place that a rule without chance may choose, ties within rounding included."""
    far = np.array([sum(math.dist(a, b) for b in actions) / len(actions) for a in actions])
    if rule == "central":
        return {*np.flatnonzero(far <= far.min() + 1e-5).tolist()}
    if rule == "best":
        return {*np.flatnonzero(scores == scores.max()).tolist()}
    kept = min(round(parameter), len(actions))
    limit = np.sort(far)[kept - 1]
    surely, perhaps = far < limit - 1e-5, far <= limit + 1e-5
    least = scores[surely].max() if surely.any() else -np.inf
    return {*np.flatnonzero(perhaps & (scores >= least)).tolist()}
