"""What shows that a data set is statistically of the published kind."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sorl.data.names import NUMBER_OF_TASKS, EnvironmentName, dataset_names
from sorl.errors import InputError


@dataclass(frozen=True)
class TaskSuccess:
    """How often the data solve one task, by ogbench's own relabelling."""

    task: int
    """Number of the task, 1 to 5."""
    rows: int
    """Rows with a successor whose state fulfils the whole task."""
    per_million: float
    """The same for each million rows with a successor."""
    episodes: int
    """Episodes that hold such a row."""


@dataclass(frozen=True)
class Description:
    """The figures of one file of data in OGBench's layout."""

    path: Path
    rows: int
    """Rows, the last one of each episode included."""
    episode_lengths: dict[int, int]
    """How many episodes have how many rows."""
    saturation: float
    """Share of the actions' entries that are exactly -1 or 1."""
    successes: tuple[TaskSuccess, ...]
    """One for each task; none for a set whose name OGBench doesn't know or that has no `qpos`."""

    def __str__(self) -> str:
        lengths = ", ".join(f"{n} of {rows} rows" for rows, n in self.episode_lengths.items())
        lines = [
            f"{self.path}: {self.rows:,} rows",
            f"episodes: {lengths}",
            f"action entries at -1 or 1: {self.saturation:.1%}",
        ]
        lines += [
            f"task {one.task}: {one.rows:,} success rows in {one.episodes:,} episodes, "
            f"{one.per_million:,.0f} per million rows"
            for one in self.successes
        ]
        return "\n".join(lines)


def describe(path: Path) -> Description:
    """Compute the figures of `NAME.npz` or `NAME-val.npz`; which tasks there are follows from NAME.

    Raises:
        InputError: the file is missing or is no archive with the arrays that are needed.
    """
    try:
        # NumPy leaves a file open that it opened and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = ("actions", "terminals", "qpos", "button_states")
            arrays = {key: archive[key] for key in keys if key in archive.files}
        actions, ends = arrays["actions"], np.flatnonzero(arrays["terminals"])
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no data set in OGBench's layout ({error}).") from error
    name = path.stem.removesuffix("-val")
    known = name in dataset_names() and "qpos" in arrays
    return Description(
        path=path,
        rows=len(actions),
        episode_lengths=dict(sorted(Counter(np.diff(ends, prepend=-1).tolist()).items())),
        saturation=float(np.mean(np.abs(actions) == 1.0)),
        successes=_count_successes(name, arrays) if known else (),
    )


def _count_successes(dataset: str, arrays: dict[str, np.ndarray]) -> tuple[TaskSuccess, ...]:
    with warnings.catch_warnings():
        # ogbench's import and its environments warn about displays and number types.
        warnings.simplefilter("ignore")
        import gymnasium
        from ogbench.relabel_utils import relabel_dataset

        terminals = arrays["terminals"].astype(bool)
        episode = (np.cumsum(terminals) - terminals)[~terminals]
        data = {key: arrays[key][~terminals] for key in ("qpos", "button_states") if key in arrays}
        successes: list[TaskSuccess] = []
        for task in range(1, NUMBER_OF_TASKS + 1):
            identifier = EnvironmentName(dataset, task).gymnasium_id
            environment = gymnasium.make(identifier, disable_env_checker=True)
            relabel_dataset(identifier, environment, data)
            environment.close()
            solved = data["masks"] == 0.0
            rows = int(np.count_nonzero(solved))
            successes.append(
                TaskSuccess(
                    task=task,
                    rows=rows,
                    per_million=1e6 * rows / max(1, len(solved)),
                    episodes=len(np.unique(episode[solved])),
                )
            )
    return tuple(successes)
