"""What the points of a grid reached, side by side: scores, the best of each budget, one table."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sorl import tables
from sorl.jobs.grid import Point, text
from sorl.jobs.job import Job
from sorl.jobs.outcome import stopped_members
from sorl.report.results import LAST, Results, Values, read
from sorl.report.statistics import bootstrap, mean
from sorl.types import Budget


@dataclasses.dataclass(frozen=True)
class Score:
    """What one point reached at one budget, over all tasks and seeds.

    Attributes:
        point: the point.
        budget: the budget.
        success: mean success at the last update, tasks weighing the same; NaN where the run did
            not get there.
        success_of_last: its mean over the last three evaluations, NaN if there are fewer.
        mean_return: mean return of an episode, as `success`.
        return_of_last: its mean over the last three evaluations.
        tasks: number of tasks.
        seeds: number of seeds.
        updates: updates of training after which `success` and `mean_return` were measured.
        episodes: episodes of all tasks and seeds in one evaluation; 0 if there was none.
        stopped: members whose training was stopped because it diverged; their last good state is
            what was scored.
        best: whether no point of the grid is better at this budget, and not all are alike.
        low: lower end of the 95% bootstrap interval over seeds of `success_of_last`, or of
            `success` where there are fewer than three evaluations; NaN with a single seed.
        high: its upper end.
        latency_ms: median milliseconds of one decision.
    """

    point: Point
    budget: Budget
    success: float
    success_of_last: float
    mean_return: float
    return_of_last: float
    tasks: int
    seeds: int
    updates: int
    episodes: int
    stopped: int
    best: bool = False
    low: float = math.nan
    high: float = math.nan
    latency_ms: float = math.nan

    @property
    def own(self) -> bool:
        """Whether the budget is what the method does by itself."""
        return self.budget == self.point.algorithm.own_budget


def compare(out: Path | str, points: Sequence[Point], job: Job) -> list[Score]:
    """Scores of points that have ended, ordered by point, then by budget; each at its own budgets.

    The best point of a budget has the highest mean success over the last three evaluations, or at
    the last one unless every point has three; of points alike in this, the highest return.

    Raises:
        InputError: a run cannot be read.
    """
    runs = read([Path(out) / point.name for point in points]) if points else []
    budgets = {point.name: point.job(job).budgets for point in points}
    scores: dict[tuple[str, Budget], Score] = {}
    for budget in dict.fromkeys(itertools.chain.from_iterable(budgets.values())):
        found = [
            _score(point, run, budget, job)
            for point, run in zip(points, runs, strict=True)
            if budget in budgets[point.name]
        ]
        scores |= {(score.point.name, budget): score for score in _mark_best(found)}
    return [scores[point.name, budget] for point in points for budget in budgets[point.name]]


def write_table(path: Path | str, scores: Iterable[Score]) -> None:
    """Write scores as CSV, one row for each point and budget, replacing an earlier file whole.

    Scores that a point does not have are empty cells.

    Raises:
        InputError: it cannot be written.
    """
    tables.write_rows(Path(path), map(_row, scores))


def _score(point: Point, run: Results, budget: Budget, job: Job) -> Score:
    found = run.evaluations
    place = found.budgets.index(budget) if budget in found.budgets else None
    if place is not None and found.last_update(place) != job.updates:
        place = None  # its training did not get to the end: that is no score to compare

    def over_members(values: Callable[[str, int], Values], measure: str) -> float:
        return math.nan if place is None else float(mean(values(measure, place)))

    low = high = math.nan
    if place is not None:
        successes = found.mean_of_last("success", place)
        if np.isnan(successes).all():
            successes = found.last("success", place)
        _, low, high = map(float, bootstrap(successes))
    return Score(
        point=point,
        budget=budget,
        success=over_members(found.last, "success"),
        success_of_last=over_members(found.mean_of_last, "success"),
        mean_return=over_members(found.last, "return"),
        return_of_last=over_members(found.mean_of_last, "return"),
        tasks=len(found.tasks),
        seeds=len(found.seeds),
        updates=job.updates,
        episodes=0 if place is None else int(np.nansum(found.last("episodes", place))),
        stopped=len(stopped_members(run.config, run.events)),
        low=low,
        high=high,
        latency_ms=over_members(found.last, "latency_ms"),
    )


def _mark_best(scores: Sequence[Score]) -> list[Score]:
    """The scores of one budget; none is the best where all are alike, or where there is one point.

    The only one of several points that got to the end is the best of them.
    """
    known = [score for score in scores if not math.isnan(score.success)]
    by_last = not any(math.isnan(score.success_of_last) for score in known)

    def key(score: Score) -> tuple[float, float]:
        if by_last:
            return score.success_of_last, score.return_of_last
        return score.success, score.mean_return

    keys = set(map(key, known))
    if len(scores) == 1 or (len(known) > 1 and len(keys) == 1):
        return list(scores)
    return [
        dataclasses.replace(score, best=score in known and key(score) == max(keys))
        for score in scores
    ]


def _row(score: Score) -> dict[str, Any]:
    measured = {
        "success": score.success,
        f"success_of_last_{LAST}": score.success_of_last,
        "return": score.mean_return,
        f"return_of_last_{LAST}": score.return_of_last,
    }
    return {
        "point": score.point.name,
        **{name: text(value) for name, value in score.point.values.items()},
        "budget": str(score.budget),
        **_cells(measured),
        "tasks": score.tasks,
        "seeds": score.seeds,
        "updates": score.updates,
        "episodes": score.episodes,
        "stopped": score.stopped,
        "best": score.best,
        "own_budget": score.own,
        **_cells({"low": score.low, "high": score.high, "latency_ms": score.latency_ms}),
    }


def _cells(values: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers as cells of a table; what is not known is an empty one."""
    return {name: "" if math.isnan(value) else value for name, value in values.items()}
