"""Data of a given size whose content means nothing: for measurements of speed."""

from __future__ import annotations

import numpy as np

from sorl.data.dataset import Dataset

_EPISODE = 1_000


def synthetic(observation_size: int, action_size: int, rows: int = 100_000) -> Dataset:
    """Normal observations, uniform actions, a reward of -1 everywhere, one task.

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        rows: number of rows; an episode has a thousand, and the last row ends one.
    """
    generator = np.random.default_rng(0)
    ends = np.zeros(rows)
    ends[_EPISODE - 1 :: _EPISODE] = 1
    ends[-1] = 1
    return Dataset.from_arrays(
        generator.normal(size=(rows, observation_size)).astype(np.float32),
        generator.uniform(-1, 1, (rows, action_size)).astype(np.float32),
        ends,
        -np.ones((1, rows), np.float32),
        np.ones((1, rows), np.float32),
    )
