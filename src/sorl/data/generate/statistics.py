"""What shows that a data set is statistically of the published kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sorl.data.archive import ArchiveReader
from sorl.data.checks import check_kind
from sorl.data.names import NUMBER_OF_TASKS, EnvironmentName, dataset_names
from sorl.data.relabel import Relabeller
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
    """One for each task; none for a file whose name OGBench does not know."""

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
        InputError: the file is missing, damaged or not in OGBench's layout.
    """
    reader = ArchiveReader(path)
    reader.require("actions", "terminals")
    actions = check_kind(str(path), "actions", reader.read("actions"), kinds="f")
    terminals = check_kind(str(path), "terminals", reader.read("terminals"), kinds="biuf") != 0
    if not len(actions) or terminals.shape != actions.shape[:1]:
        raise InputError(
            f"{path}: actions of shape {actions.shape} and terminals of shape {terminals.shape} "
            "are not the rows of a data set."
        )
    lengths = np.diff(np.flatnonzero(terminals), prepend=-1)
    name = path.stem.removesuffix("-val")
    return Description(
        path=path,
        rows=len(actions),
        episode_lengths=dict(sorted(Counter(lengths.tolist()).items())),
        saturation=float(np.mean(np.abs(actions) == 1.0)),
        successes=_count_successes(name, reader, terminals) if name in dataset_names() else (),
    )


def _count_successes(
    dataset: str, reader: ArchiveReader, terminals: np.ndarray
) -> tuple[TaskSuccess, ...]:
    tasks = range(1, NUMBER_OF_TASKS + 1)
    with Relabeller(EnvironmentName(dataset, tasks[0])) as relabeller:
        _, masks = relabeller.label(reader, len(terminals), tasks)
    episode = np.cumsum(terminals) - terminals
    solved = ~masks & ~terminals
    return tuple(
        TaskSuccess(
            task=task,
            rows=int(np.count_nonzero(rows)),
            per_million=1e6 * np.count_nonzero(rows) / max(1, np.count_nonzero(~terminals)),
            episodes=len(np.unique(episode[rows])),
        )
        for task, rows in zip(tasks, solved, strict=True)
    )
