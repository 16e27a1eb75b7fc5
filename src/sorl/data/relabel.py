"""Rewards and masks of OGBench's single-task environments, from the logged simulator state.

The rule itself is ogbench's own (`ogbench.relabel_utils`); here is what makes it safe and lean: the
checks before it, one environment for all tasks, and a bounded number of rows at a time. Rewards
refer to the state before the step, as OGBench's environments do since 1.2
(`success_timing="pre"`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sorl.data.archive import ArchiveReader
from sorl.data.checks import check_finite, check_kind
from sorl.data.names import IMAGE_SHAPE, EnvironmentName
from sorl.errors import InputError

_ROWS_AT_ONCE = 250_000


class Relabeller:
    """One simulated environment that knows its sizes and what its tasks demand.

    A context manager: the environment is closed at the end.

    Args:
        name: the environment; its task matters only for `check_sizes`' messages.
    """

    def __init__(self, name: EnvironmentName) -> None:
        import gymnasium
        import ogbench  # noqa: F401  registers its environments with gymnasium

        self.name = name
        # Rewards are computed from the simulator's state, so nothing is ever drawn here.
        self._id = name.of_states.gymnasium_id
        with _quiet():
            self._environment = gymnasium.make(self._id, disable_env_checker=True)
            self._environment.reset(seed=0)
            size = _size(self._environment.observation_space)
            self._observation_shape = IMAGE_SHAPE if name.is_visual else (size,)
            self._action_size = _size(self._environment.action_space)
        self._simulator: Any = self._environment.unwrapped

    def __enter__(self) -> Relabeller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._environment.close()

    def check_sizes(self, path: Path, observations: np.ndarray, actions: np.ndarray) -> None:
        """Check that data belong to the environment, as far as their sizes tell.

        Args:
            path: file that the message begins with.
            observations: `[rows, observation_size]`, or pictures `[rows, height, width, 3]`.
            actions: `[rows, action_size]`.

        Raises:
            InputError: a size differs.
        """
        for what, array, shape in (
            ("observations", observations, self._observation_shape),
            ("actions", actions, (self._action_size,)),
        ):
            if array.shape[1:] != shape:
                needed = ", ".join(map(str, ("rows", *shape)))
                raise InputError(
                    f"{path}: does not belong to {self.name}: {what} have shape {array.shape}, "
                    f"but the environment needs ({needed})."
                )

    def label(
        self, reader: ArchiveReader, rows: int, tasks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and masks of several tasks over the same rows.

        Args:
            reader: file with `qpos` and, for scene and puzzle, `button_states`.
            rows: rows that the file's other arrays have.
            tasks: numbers of the tasks, 1 to 5.

        Returns:
            Rewards, float32 `[tasks, rows]`, and masks, bool `[tasks, rows]`, false on success.

        Raises:
            InputError: the file lacks an array, or its type, shape or content is wrong.
        """
        from ogbench.relabel_utils import relabel_dataset

        states = self._read_states(reader, rows)
        rewards = np.empty((len(tasks), rows), np.float32)
        masks = np.empty((len(tasks), rows), np.bool_)
        for place, task in enumerate(tasks):
            # Building an environment takes up to a second, choosing another task nothing: the
            # task number takes effect at the reset with which relabelling begins.
            self._simulator._reward_task_id = task
            for start in range(0, rows, _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                chunk = {key: values[part] for key, values in states.items()}
                with _quiet():
                    relabel_dataset(self._id, self._environment, chunk)
                rewards[place, part] = chunk["rewards"]
                masks[place, part] = chunk["masks"]
        return rewards, masks

    def _read_states(self, reader: ArchiveReader, rows: int) -> dict[str, np.ndarray]:
        widths = {"qpos": ("f", int(self._simulator.model.nq))}
        if self.name.of_states.dataset.startswith(("scene-", "puzzle-")):
            widths["button_states"] = ("iub", int(self._simulator._num_buttons))
        missing = [key for key in widths if key not in reader.names]
        if missing:
            raise InputError(
                f"{reader.path}: lacks {', '.join(missing)}, from which the rewards of "
                f"{self.name} are computed; the file holds {', '.join(reader.names)}."
            )
        states = {}
        for key, (kinds, width) in widths.items():
            array = check_kind(str(reader.path), key, reader.read(key), kinds=kinds)
            if array.shape != (rows, width):
                raise InputError(
                    f"{reader.path}: {key} have shape {array.shape}, but {rows} rows of "
                    f"{self.name} need {(rows, width)}."
                )
            check_finite(str(reader.path), key, array)
            states[key] = array
        return states


def _quiet() -> warnings.catch_warnings:
    """Hide Gymnasium's warning, at every reset, that bounds of float64 spaces are rounded."""
    return warnings.catch_warnings(action="ignore")


def _size(space: Any) -> int:
    (size,) = space.shape
    return int(size)
