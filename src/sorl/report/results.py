"""A run's folder as arrays: what the figures and tables of a report are made of.

Every array ends in `[seeds, tasks]`, NaN where a seed of a task has no value, so that
`sorl.report.statistics` can take it as it is.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sorl.errors import InputError
from sorl.report.statistics import mean_of_last
from sorl.runs import Run
from sorl.types import Budget

Row = Mapping[str, Any]
Values = NDArray[np.float64]

MEASURES = ("success", "return", "length", "latency_ms", "act_ms", "episodes")
MEDIA = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
LAST = 3  # evaluations whose mean is the convention for a final score

_MOST_POINTS = 150  # of a training curve: more cannot be told apart, and the page stays small
_KEYS = ("update", "task", "seed")


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """All evaluations of one run.

    Attributes:
        updates: updates at which anything was evaluated, ascending, `[updates]`.
        budgets: budgets evaluated, by best-of and then steps.
        seeds: seeds of the last axis but one.
        tasks: tasks of the last axis.
        measures: for each of `MEASURES` an array `[updates, budgets, seeds, tasks]`.
    """

    updates: NDArray[np.int64]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    tasks: tuple[int, ...]
    measures: Mapping[str, Values]

    def moments(self, budget: int) -> NDArray[np.intp]:
        """Indices of the updates at which this budget (an index) has a success of any member."""
        present = ~np.isnan(self.measures["success"][:, budget])
        return np.flatnonzero(present.any(axis=(-2, -1)))

    def last(self, measure: str, budget: int) -> Values:
        """A measure of one budget at the last update it was evaluated at, `[seeds, tasks]`."""
        moments = self.moments(budget)
        if not len(moments):
            return np.full((len(self.seeds), len(self.tasks)), np.nan)
        return self.measures[measure][moments[-1], budget]

    def mean_of_last(self, measure: str, budget: int) -> Values:
        """Mean over the last three evaluations of a budget, `[seeds, tasks]`; NaN if fewer."""
        moments = self.moments(budget)
        if len(moments) < LAST:
            return np.full((len(self.seeds), len(self.tasks)), np.nan)
        return mean_of_last(self.measures[measure][moments, budget], LAST)

    def last_update(self, budget: int) -> int | None:
        """The last update at which this budget was evaluated."""
        moments = self.moments(budget)
        return int(self.updates[moments[-1]]) if len(moments) else None


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The training curves of one run.

    Attributes:
        updates: update of each point, ascending, `[points]`; a mean where points were merged.
        columns: for each metric an array `[points, seeds, tasks]`.
    """

    updates: Values
    columns: Mapping[str, Values]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything a report says about one run.

    Attributes:
        name: what the run is called in the report, unique within it.
        config: the run's `config.json`.
        evaluations: scores by update, budget, seed and task.
        metrics: training curves.
        updates_per_second: median training speed, NaN if unknown.
        events: things that happened, such as a seed that was stopped.
        media: pictures and films of rollouts.
        off_policy: rows of off_policy.csv, of a run without environment.
    """

    name: str
    config: Mapping[str, Any]
    evaluations: Evaluations
    metrics: Metrics
    updates_per_second: float
    events: Sequence[Row]
    media: tuple[Path, ...]
    off_policy: Sequence[Row] = ()

    @property
    def algorithm(self) -> str:
        """Name of the algorithm as its paper writes it."""
        algorithm = self.config.get("algorithm")
        name = algorithm.get("name") if isinstance(algorithm, Mapping) else algorithm
        return str(name or "unknown algorithm").upper()

    @property
    def environment(self) -> str:
        """Environment without task and version, for example `cube-single-play`."""
        name = self.config.get("environment") or "data without an environment"
        return re.sub(r"-singletask(-task\d+)?-v\d+$", "", str(name))


def read(paths: Sequence[Path]) -> list[Results]:
    """Read runs and give each a name of its own.

    Raises:
        InputError: there is no path, or a path is no run that can be read.
    """
    if not paths:
        raise InputError("There is no run to report on: give at least one run folder.")
    names = _unique_names([Path(path) for path in paths])
    return [_read(Path(path), name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Results:
    run = Run.open(path)
    speeds = [number(row.get("updates_per_second")) for row in run.timing()]
    speeds = [speed for speed in speeds if not math.isnan(speed)]
    folder = path / "media"
    media = sorted(folder.iterdir()) if folder.is_dir() else []
    return Results(
        name=name,
        config=run.config,
        evaluations=_evaluations(run.evaluations(), run.config),
        metrics=_metrics(run.metrics()),
        updates_per_second=float(np.median(speeds)) if speeds else math.nan,
        events=list(run.events()),
        media=tuple(file for file in media if file.suffix.lower() in MEDIA and file.is_file()),
        off_policy=run.off_policy(),
    )


def number(value: Any) -> float:
    """A finite number as float; NaN for anything else, such as an empty cell."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def _whole(value: Any) -> int | None:
    result = number(value)
    return int(result) if result.is_integer() else None


def _budget(row: Row) -> Budget | None:
    steps, best_of = _whole(row.get("steps")), _whole(row.get("best_of"))
    try:
        if steps is not None and best_of is not None:
            return Budget(steps, best_of)
        return Budget.parse(str(row.get("budget")))
    except InputError:
        return None


def _whole_numbers(value: Any) -> set[int]:
    values = value if isinstance(value, list) else []
    return {whole for whole in map(_whole, values) if whole is not None}


def _evaluations(rows: Iterable[Row], config: Mapping[str, Any]) -> Evaluations:
    """Rows without update, member or budget are left out; of two alike the later one counts."""
    found: dict[tuple[int, Budget, int, int], Row] = {}
    for row in rows:
        update, task, seed = (_whole(row.get(key)) for key in _KEYS)
        budget = _budget(row)
        if update is not None and task is not None and seed is not None and budget is not None:
            found[update, budget, seed, task] = row
    updates = sorted({key[0] for key in found})
    budgets = sorted({key[1] for key in found}, key=lambda budget: (budget.best_of, budget.steps))
    # Tasks and seeds that were trained but never evaluated are missing scores, not nothing.
    seeds = sorted({key[2] for key in found} | _whole_numbers(config.get("seeds"))) or [0]
    tasks = sorted({key[3] for key in found} | _whole_numbers(config.get("tasks"))) or [0]
    shape = (len(updates), len(budgets), len(seeds), len(tasks))
    measures = {measure: np.full(shape, np.nan) for measure in MEASURES}
    for (update, budget, seed, task), row in found.items():
        index = (
            updates.index(update),
            budgets.index(budget),
            seeds.index(seed),
            tasks.index(task),
        )
        for measure in MEASURES:
            measures[measure][index] = number(row.get(measure))
    return Evaluations(
        np.array(updates, dtype=np.int64), tuple(budgets), tuple(seeds), tuple(tasks), measures
    )


def _metrics(rows: Sequence[Row]) -> Metrics:
    members = [tuple(_whole(row.get(key)) for key in _KEYS) for row in rows]
    kept = [(row, member) for row, member in zip(rows, members, strict=True) if None not in member]
    if not kept:
        return Metrics(np.empty(0), {})
    keys = np.array([member for _, member in kept], dtype=np.int64)
    moments, moment = np.unique(keys[:, 0], return_inverse=True)
    tasks, task = np.unique(keys[:, 1], return_inverse=True)
    seeds, seed = np.unique(keys[:, 2], return_inverse=True)
    points = min(len(moments), _MOST_POINTS)
    point_of_moment = np.arange(len(moments)) * points // len(moments)
    index = (point_of_moment[moment], seed, task)
    updates = np.bincount(point_of_moment, moments) / np.bincount(point_of_moment)
    columns: dict[str, Values] = {}
    for name in dict.fromkeys(key for row, _ in kept for key in row if key not in _KEYS):
        values = np.array([number(row.get(name)) for row, _ in kept])
        present = ~np.isnan(values)
        if not present.any():
            continue
        total, count = np.zeros((2, points, len(seeds), len(tasks)))
        np.add.at(total, index, np.where(present, values, 0.0))
        np.add.at(count, index, present)
        columns[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Metrics(updates, columns)


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart; numbered where nothing does."""
    # A name may hold bytes that are no text, which no page can.
    resolved = (str(path.absolute().resolve()) for path in paths)
    parts = [Path(text.encode(errors="replace").decode()).parts for text in resolved]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=1) + 1):
        if len(set(names)) == len(names):
            break
        names = [
            "/".join(part[-depth:]).replace("//", "/") if names.count(name) > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [f"{name} ({position})" for position, name in enumerate(names, start=1)]
    return names
