"""What an experiment found, as rows of one flat table from which everything is drawn.

One row for each method, environment, task, seed, evaluated update, budget and choice; only the
last three evaluated updates of a run are kept, and every score is the mean over them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sorl import tables
from sorl.experiments.cells import Cell
from sorl.jobs.outcome import stopped_members
from sorl.jobs.scoring import scores
from sorl.report.results import LAST
from sorl.report.statistics import Estimate, bootstrap, probability_of_improvement
from sorl.runs import Run

Row = dict[str, Any]

_KEPT = ("update", "task", "seed", "steps", "best_of", "episodes", "success", "return", "length")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one experiment, perhaps a part of them.

    Attributes:
        rows: the rows, all with the same columns.
    """

    rows: Sequence[Row]

    def where(self, **values: Any) -> Rows:
        """Those whose columns have these values."""
        return Rows([row for row in self.rows if all(row.get(k) == v for k, v in values.items())])

    def last(self) -> Rows:
        """Those of the last update that there is of their environment."""
        ends: dict[str, float] = {}
        for row in self.rows:
            ends[row["environment"]] = max(row["update"], ends.get(row["environment"], 0))
        return Rows([row for row in self.rows if row["update"] == ends[row["environment"]]])

    def values(self, column: str) -> list[Any]:
        """The different values of a column, in the order of their appearance."""
        return list(dict.fromkeys(row[column] for row in self.rows if column in row))

    def scores(self, measure: str = "success") -> NDArray[np.float64]:
        """A measure as `[seeds, tasks]`, each the mean over all updates that are kept.

        Tasks of different environments are different tasks; they stand in the order of `tasks`. A
        member of which an update is missing that others of its environment have is NaN.
        """
        seeds, tasks = sorted(self.values("seed")), self.tasks()
        found: dict[tuple[int, int], dict[float, float]] = {}
        updates: dict[str, set[float]] = {}
        for row in self.rows:
            place = seeds.index(row["seed"]), tasks.index((row["environment"], row["task"]))
            found.setdefault(place, {})[row["update"]] = float(row[measure])
            updates.setdefault(row["environment"], set()).add(row["update"])
        array = np.full((len(seeds), len(tasks)), np.nan)
        for place, values in found.items():
            environment, _ = tasks[place[1]]
            # A run that diverged was evaluated at other updates than that of another environment.
            if len(values) == len(updates[environment]):
                array[place] = sum(values.values()) / len(values)
        return array

    def tasks(self) -> list[tuple[str, float]]:
        """The environments and tasks that there are rows of, sorted."""
        return sorted({(row["environment"], row["task"]) for row in self.rows})

    def estimate(self, measure: str = "success") -> Estimate:
        """Mean over seeds and tasks with its 95% bootstrap interval; NaN where there is nothing."""
        if not self.rows:
            return Estimate(*(np.asarray(math.nan) for _ in range(3)))
        return bootstrap(self.scores(measure))

    def better_than(self, other: Rows) -> Estimate:
        """The probability that a run of these is better than one of the others, on a random task.

        NaN where either has nothing, or lacks a score or a task.
        """
        if self.rows and other.rows and self.tasks() == other.tasks():
            mine, theirs = self.scores(), other.scores()
            if not (np.isnan(mine).any() or np.isnan(theirs).any()):
                return probability_of_improvement(mine, theirs)
        return Estimate(*(np.asarray(math.nan) for _ in range(3)))

    def __bool__(self) -> bool:
        """Whether there is any row."""
        return bool(self.rows)


def collect(cells: Iterable[tuple[Cell, Path]]) -> Rows:
    """The rows of runs that have ended.

    Args:
        cells: each with the folder of its run.
    """
    found: list[Row] = []
    for cell, folder in cells:
        run = Run.open(folder)
        evaluated = [{"choice": "own", **row} for row in run.evaluations()]
        everything = [*evaluated, *scores(run)]
        updates = sorted({float(row["update"]) for row in everything})[-LAST:]
        stopped = stopped_members(run.config, run.events())
        label: Row = {
            "method": cell.method,
            "environment": cell.dataset.removesuffix("-v0"),
            # What experiments vary; a method without it has 0.
            "backprop_steps": getattr(cell.algorithm, "backprop_steps", 0),
            "actor_width": _actor_width(cell),
        }
        unique: dict[tuple[Any, ...], Row] = {}
        for row in everything:
            if row["update"] not in updates:
                continue
            # One candidate is the same whatever would choose among several.
            choice = "own" if row["best_of"] == 1 else str(row["choice"])
            kept = {name: row[name] for name in _KEPT}
            member = (row["task"], row["seed"])
            kept |= {"choice": choice, "stopped": int(member in stopped)}
            key = tuple(kept[name] for name in ("update", "task", "seed", "steps", "best_of"))
            unique[*key, choice] = label | kept
        found += unique.values()
    return Rows(found)


def _actor_width(cell: Cell) -> int:
    """Units of the first hidden layer of the policy."""
    layers = getattr(cell.algorithm, "actor_hidden", ()) or getattr(cell.algorithm, "hidden", ())
    return layers[0] if layers else 0


def write(path: Path, rows: Rows) -> None:
    """Write rows as CSV, replacing an earlier file whole.

    Raises:
        InputError: it cannot be written.
    """
    tables.write_rows(path, rows.rows)


def read(path: Path) -> Rows:
    """Rows that `write` wrote; numbers come back as floats, empty cells as empty texts."""
    found = tables.read_rows(path)
    columns = list(dict.fromkeys(column for row in found for column in row))
    return Rows([{column: row.get(column, "") for column in columns} for row in found])
