"""A small grid, of hyperparameters or of algorithms, as a queue of runs.

`sorl.jobs.comparison` tells what they reach. It is a queue and not one program mapped over the
points, because hyperparameters are static: they are constants of the compiled program and decide
what it computes (layers, steps, branches), not only with which numbers. So every point is a program
of its own, and the points follow one another. What can share a program does: the tasks and seeds of
one point train together, as in any run.

    out/alpha=0.1,discount=0.99/    an ordinary run, one for each point of hyperparameters
    out/sorl/                       the same, one for each algorithm

A queue that was stopped goes on with `run_queue` and the same arguments: runs that have ended are
kept, one that was begun is resumed.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sorl import algorithms, files
from sorl.algorithm import AbstractAlgorithm
from sorl.console import Display
from sorl.errors import InputError
from sorl.inference import check_budgets, policy_skeleton, servable_budgets
from sorl.interruption import Interruption, StoppedError
from sorl.jobs.job import EXECUTION, Job, config_of
from sorl.jobs.outcome import diverged, ended, is_run
from sorl.jobs.work import load_data, start
from sorl.runs import INCIDENTAL, Run, check_same_config
from sorl.types import Budget

MOST_POINTS = 64

_LONGEST_NAME = 255  # bytes in the name of a folder


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a grid.

    Attributes:
        name: its name and that of its run's folder, for example `alpha=0.1,discount=0.99`.
        values: what tells it from the other points: its value of each hyperparameter of the grid,
            or the name of its algorithm.
        algorithm: the learning rule with these values.
        budgets: what it is evaluated at; None means the budgets of the job.
    """

    name: str
    values: Mapping[str, Any]
    algorithm: AbstractAlgorithm[Any]
    budgets: tuple[Budget, ...] | None = None

    def job(self, job: Job) -> Job:
        """The job of this point, given that of the whole grid."""
        return job if self.budgets is None else dataclasses.replace(job, budgets=self.budgets)


def points_of(algorithm: AbstractAlgorithm[Any], grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The points of a grid: every combination of its values, the last hyperparameter varying first.

    Args:
        algorithm: gives all hyperparameters that the grid does not name.
        grid: hyperparameter to its values, at most `MOST_POINTS` combinations.

    Raises:
        InputError: an unknown hyperparameter, one without values or with the same value twice, a
            value that the algorithm refuses, no or too many points.
    """
    kind = type(algorithm).__name__
    if not grid:
        raise InputError(
            "The grid is empty: name a hyperparameter and its values, such as alpha=0.1,1,10."
        )
    known = [field.name for field in dataclasses.fields(algorithm)]  # pyright: ignore[reportArgumentType]
    for name, values in grid.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise InputError(f"{kind} has no hyperparameter {name!r}: {hint}")
        if not values:
            raise InputError(f"The grid has no value of {name}: give at least one.")
        repeated = [value for place, value in enumerate(values) if value in values[:place]]
        if repeated:
            raise InputError(f"The grid holds {name}={text(repeated[0])} twice: give it once.")
    count = math.prod(map(len, grid.values()))
    if count > MOST_POINTS:
        raise InputError(
            f"The grid has {count} points, and {MOST_POINTS} are the most: leave out values, or "
            "tune one hyperparameter after the other."
        )
    combinations = (
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    )
    points = [
        Point(
            ",".join(f"{name}={text(value)}" for name, value in values.items()),
            values,
            dataclasses.replace(algorithm, **values),  # pyright: ignore[reportArgumentType]
        )
        for values in combinations
    ]
    for point in points:
        if set(point.name) & {"/", "\0"} or len(os.fsencode(point.name)) > _LONGEST_NAME:
            raise InputError(
                f"The point {point.name!r} cannot name a folder: use short values without slashes."
            )
    return points


def points_of_algorithms(
    chosen: Sequence[AbstractAlgorithm[Any]], budgets: Iterable[Budget] = ()
) -> list[Point]:
    """A point for each algorithm, named after it.

    Args:
        chosen: the algorithms, each kind once.
        budgets: what each is evaluated at where its policy can serve it, beside the algorithm's
            `own_budget`.

    Raises:
        InputError: an algorithm is there twice, or none at all.
    """
    names = [algorithms.name_of(algorithm) for algorithm in chosen]
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise InputError(f"The algorithm {repeated[0]} is named twice: name it once.")
    if not names:
        raise InputError("There is nothing to compare: name at least one algorithm.")
    return [
        Point(name, {"algorithm": name}, algorithm, servable_budgets(algorithm, budgets))
        for name, algorithm in zip(names, chosen, strict=True)
    ]


def run_queue(
    out: Path | str, points: Sequence[Point], job: Job, *, quiet: bool = False
) -> list[Point]:
    """Train every point into `out/<its name>`, one after the other; called again, go on.

    A point whose members all diverged counts as ended, and the queue goes on. Ctrl-C and SIGTERM
    stop it with everything saved.

    Args:
        out: folder of the runs; new, empty, or that of the same queue.
        points: points of one grid, of names that differ.
        job: what to train at each of them, with an environment to compare them in.
        quiet: print nothing.

    Returns:
        The points that have ended: all of them, unless the user stopped the queue.

    Raises:
        InputError: before anything trains, a budget that a point cannot serve, a folder of
            something else, a run in it with other settings or data; or whatever `start` raises.
    """
    out = Path(out)
    display = Display(quiet=quiet)
    # A signal while no run handles it itself, say while data load, ends the queue at once: what
    # the runs have saved is whole at any moment.
    stop = Interruption(lambda: None, "stopped at once; the same command goes on.")
    try:
        with stop.handled(), stop.skippable():
            _check(out, points, job)
            for number, point in enumerate(points, start=1):
                folder, own = out / point.name, point.job(job)
                if not ended(folder, own):
                    display.say(f"Point {number} of {len(points)}: {point.name}")
                    _train(folder, point, own, display, quiet=quiet)
                if not ended(folder, own):
                    break  # the user stopped it
    except StoppedError:
        pass
    return [point for point in points if ended(out / point.name, point.job(job))]


def text(value: Any) -> str:
    """A hyperparameter's value as the name of a point holds it: `0.1`, `10`, `256x256`, `min`."""
    if isinstance(value, tuple):
        return "x".join(map(text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _check(out: Path, points: Sequence[Point], job: Job) -> None:
    if job.environment is None:
        raise InputError(
            "Points are compared by what they reach in an environment: name it, --env."
        )
    for point in points:
        try:
            check_budgets(policy_skeleton(point.algorithm), point.job(job).budgets)
        except InputError as error:
            raise InputError(f"{point.name}: {error}") from error
    folders = [out / point.name for point in points]
    if os.path.exists(out):  # unlike Path.exists, False where we may not look
        with files.explained("use", out):
            there = {entry.name for entry in out.iterdir()}
        if "config.json" in there or (there and there.isdisjoint(f.name for f in folders)):
            raise InputError(
                f"The folder {out} holds something else than runs of this grid: choose another "
                "--out."
            )
    begun = [pair for pair in zip(folders, points, strict=True) if is_run(pair[0])]
    if not begun:
        return
    dataset = load_data(job)
    for folder, point in begun:
        config = config_of(point.algorithm, point.job(job), dataset)
        try:
            check_same_config(Run.open(folder).config, config, ignored=(*INCIDENTAL, EXECUTION))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error


def _train(folder: Path, point: Point, job: Job, display: Display, *, quiet: bool) -> None:
    try:
        start(folder, point.algorithm, job, resume=True, quiet=quiet)
    except InputError:
        if not (is_run(folder) and diverged(Run.open(folder))):
            raise
        display.say(
            f"{point.name} diverged: every task and seed was stopped, see {folder / 'events.jsonl'}"
            "; the queue goes on."
        )
    finally:
        jax.clear_caches()  # a point's program serves no other point, and takes some 80 MB
