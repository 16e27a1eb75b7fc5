"""The rows of an episode in OGBench's layout: which arrays there are and of which type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Rows: TypeAlias = dict[str, np.ndarray]
"""One episode: `observations` [rows, observation], `actions` [rows, action], `qpos` and `qvel` as
float32, `terminals` (true in the last row alone) as bool and, where there are buttons,
`button_states` [rows, button] as int64. Pictures are uint8 [rows, height, width, 3].
"""

Step: TypeAlias = tuple[np.ndarray, np.ndarray, bool, Mapping[str, Any]]
"""Observation before the step, action, whether the episode ended, and the step's information."""


def stack_rows(steps: Sequence[Step]) -> Rows:
    """One row a step, stored with the state before the step, as the observation is."""
    observations, actions, ends, infos = zip(*steps, strict=True)
    seen = np.asarray(observations)
    rows = {
        "observations": seen if seen.dtype == np.uint8 else seen.astype(np.float32),
        "actions": np.asarray(actions, np.float32),
        "terminals": np.asarray(ends, np.bool_),
        "qpos": np.asarray([info["prev_qpos"] for info in infos], np.float32),
        "qvel": np.asarray([info["prev_qvel"] for info in infos], np.float32),
    }
    if "prev_button_states" in infos[0]:
        states = [info["prev_button_states"] for info in infos]
        rows["button_states"] = np.asarray(states, np.int64)
    return rows
