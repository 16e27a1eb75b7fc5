"""OGBench's names: which data sets exist, which task an environment's name means.

The tables follow the environments registered by ogbench 1.2 and its published data sets
(arXiv 2410.20092). Nothing heavy is imported here, so worker processes may use it freely.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from sorl.errors import InputError

NUMBER_OF_TASKS = 5
"""Every single-task environment of OGBench has the tasks 1 to 5."""

VISUAL = "visual-"
"""What the names of sets begin with whose observations are pictures and not states."""

IMAGE_SHAPE = (64, 64, 3)
"""Height, width and channels of those pictures, uint8."""

_TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...], int], ...] = (
    # family, sizes, kinds of data, default task
    ("pointmaze", ("medium", "large", "giant", "teleport"), ("navigate", "stitch"), 1),
    ("antmaze", ("medium", "large", "teleport"), ("navigate", "stitch", "explore"), 1),
    ("antmaze", ("giant",), ("navigate", "stitch"), 1),
    ("humanoidmaze", ("medium", "large", "giant"), ("navigate", "stitch"), 1),
    ("antsoccer", ("arena", "medium"), ("navigate", "stitch"), 4),
    ("cube", ("single", "double", "triple", "quadruple"), ("play", "noisy"), 2),
    ("cube", ("octuple",), ("play",), 2),
    ("scene", ("",), ("play", "noisy"), 2),
    ("puzzle", ("3x3", "4x4"), ("play", "noisy"), 4),
    ("puzzle", ("4x5", "4x6"), ("play", "noisy"), 2),
)


def _join(*words: str) -> str:
    return "-".join(word for word in words if word)


_DEFAULT_TASKS: dict[str, int] = {
    _join(family, size, kind, "v0"): task
    for family, sizes, kinds, task in _TABLE
    for size in sizes
    for kind in kinds
}
# OGBench renders neither point mazes, nor soccer, nor the cube of eight.
_DEFAULT_TASKS |= {
    VISUAL + dataset: task
    for dataset, task in _DEFAULT_TASKS.items()
    if not dataset.startswith(("pointmaze-", "antsoccer-", "cube-octuple-"))
}


def dataset_names() -> tuple[str, ...]:
    """Every known data set, for example `cube-single-play-v0`, in OGBench's order."""
    return tuple(_DEFAULT_TASKS)


def environment_names() -> tuple[str, ...]:
    """Every known environment in its short form, which means the default task."""
    return tuple(_short_id(dataset) for dataset in _DEFAULT_TASKS)


def default_task(dataset: str) -> int:
    """The task that OGBench means when a name holds none.

    Raises:
        InputError: there is no data set of that name.
    """
    if dataset not in _DEFAULT_TASKS:
        hint = _suggestion(dataset, dataset_names())
        raise InputError(f"There is no OGBench data set called {dataset!r}{hint}")
    return _DEFAULT_TASKS[dataset]


@dataclass(frozen=True)
class EnvironmentName:
    """One OGBench environment with one task, together with the data set that belongs to it.

    Args:
        dataset: name of the data set and, without `.npz`, of its file: `cube-single-play-v0`.
        task: number of the task, 1 to 5.

    Raises:
        InputError: unknown data set or task.
    """

    dataset: str
    task: int

    def __post_init__(self) -> None:
        """Check both parts, so that a name that exists is one that OGBench knows."""
        default_task(self.dataset)
        if isinstance(self.task, bool) or not isinstance(self.task, int):
            raise InputError(f"Task {self.task!r} of {self.dataset} is not a whole number.")
        if not 1 <= self.task <= NUMBER_OF_TASKS:
            raise InputError(
                f"Task {self.task} of {_short_id(self.dataset)} does not exist: give a number "
                f"from 1 to {NUMBER_OF_TASKS}."
            )

    @classmethod
    def parse(cls, text: str) -> EnvironmentName:
        """Read `cube-single-play-singletask-v0` (default task) or `...-singletask-task3-v0`.

        Raises:
            InputError: not a known environment; the message names what comes nearest.
        """
        name = text.strip()
        if name in _DEFAULT_TASKS:
            raise InputError(
                f"{name!r} names a data set, not an environment with a task: write "
                f"{_short_id(name)!r}, or {cls(name, 3).id!r} for its task 3."
            )
        if name.startswith("powderworld-"):
            raise InputError(
                f"Environment {name!r} has discrete actions: choose one whose actions "
                "are numbers, for example 'visual-cube-single-play-singletask-v0'."
            )
        match = re.fullmatch(r"(.+)-singletask(?:-task([0-9]{1,9}))?-v0", name)
        dataset = "" if match is None else f"{match[1]}-v0"
        if match is None or dataset not in _DEFAULT_TASKS:
            raise InputError(
                f"There is no OGBench environment called {name!r}"
                f"{_suggestion(name, environment_names())}"
            )
        return cls(dataset, _DEFAULT_TASKS[dataset] if match[2] is None else int(match[2]))

    @property
    def id(self) -> str:
        """The environment's name with its task spelled out, as ogbench reads it."""
        return f"{self.dataset.removesuffix('-v0')}-singletask-task{self.task}-v0"

    @property
    def gymnasium_id(self) -> str:
        """The identifier for `gymnasium.make`, which does not name the kind of data."""
        environment = self.dataset.removesuffix("-v0").rpartition("-")[0]
        return f"{environment}-singletask-task{self.task}-v0"

    @property
    def is_visual(self) -> bool:
        """Whether observations are pictures of `IMAGE_SHAPE`."""
        return self.dataset.startswith(VISUAL)

    @property
    def of_states(self) -> EnvironmentName:
        """The environment of the same simulator and tasks whose observations are states."""
        return replace(self, dataset=self.dataset.removeprefix(VISUAL))

    def with_task(self, task: int) -> EnvironmentName:
        """The same environment with another task.

        Raises:
            InputError: OGBench has no task of that number.
        """
        return replace(self, task=task)

    def __str__(self) -> str:
        return self.id


def _short_id(dataset: str) -> str:
    return f"{dataset.removesuffix('-v0')}-singletask-v0"


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(repr(one) for one in near)}?"
    return f": the names look like {known[0]!r}; there are {len(known)} of them."
