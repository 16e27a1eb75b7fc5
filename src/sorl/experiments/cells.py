"""Cells: the runs that an experiment needs, each in a folder named after its content.

Two experiments that need the same run name the same folder, so it is trained once; what each wants
scored beyond the run's own evaluations is added to it.

    store/data/                      data sets that are generated, where no folder is named
    store/runs/<cell>/run/           an ordinary run
    store/runs/<cell>/work.json      what it takes to make it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sorl import algorithms
from sorl.algorithm import AbstractAlgorithm
from sorl.data.names import EnvironmentName
from sorl.experiments.scales import Scale
from sorl.jobs.grid import text
from sorl.jobs.job import Job
from sorl.jobs.scoring import Scoring
from sorl.launch.work import Work

LOG_EVERY = 250


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of an experiment: a method on the tasks of one data set, all seeds.

    Attributes:
        scale: decides everything that is not said here.
        dataset: the data set, for example `cube-single-play-v0`.
        tasks: tasks that are trained together.
        algorithm: the learning rule.
        seeds: number of seeds.
        scorings: what is scored beyond the run's own evaluations.
    """

    scale: Scale
    dataset: str
    tasks: tuple[int, ...]
    algorithm: AbstractAlgorithm[Any]
    seeds: int
    scorings: tuple[Scoring, ...] = ()

    @property
    def method(self) -> str:
        """Name of the algorithm."""
        return algorithms.name_of(self.algorithm)

    @property
    def environment(self) -> EnvironmentName:
        """The environment with the first task."""
        return EnvironmentName(self.dataset, self.tasks[0])

    @property
    def name(self) -> str:
        """Name of the folder; equal exactly where everything that decides the run is equal."""
        job = self.job(None)
        content = {
            "algorithm": algorithms.describe(self.algorithm),
            "dataset": self.dataset,
            "generated": self.scale.generated,
            "tasks": self.tasks,
            "seeds": job.seeds,
            "updates": job.updates,
            "batch_size": job.batch_size,
            "log_every": job.log_every,
            "evaluate_every": job.evaluate_every,
            "episodes": job.episodes,
            "budgets": list(map(str, job.budgets)),
            **({} if job.arithmetic == "float32" else {"arithmetic": job.arithmetic}),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.method}-{self.dataset.removesuffix('-v0')}-{digest[:10]}"

    @property
    def varied(self) -> str:
        """What tells it from the method's usual cell, such as `backprop_steps=2`."""
        usual = algorithms.describe(
            cell(self.scale, self.dataset, self.tasks, self.method).algorithm
        )
        mine = algorithms.describe(self.algorithm)
        return " ".join(f"{k}={text(v)}" for k, v in mine.items() if usual[k] != v)

    def job(self, data: Path | None) -> Job:
        """The job, given the data file."""
        scale = self.scale
        return Job(
            environment=self.environment.id,
            data=data,
            tasks=self.tasks,
            seeds=tuple(range(self.seeds)),
            updates=scale.updates,
            batch_size=scale.batch_size,
            arithmetic=scale.arithmetic,
            log_every=min(LOG_EVERY, scale.evaluate_every),
            evaluate_every=scale.evaluate_every,
            budgets=(self.algorithm.own_budget,),
            episodes=scale.episodes,
            tensorboard=False,
        )

    def work(self, store: Path, data: Path | None) -> Work:
        """The work that makes it."""
        folder = store / "runs" / self.name
        name = f"{self.name} {self.varied}".strip()  # a hash alone tells a reader nothing
        return Work(name, folder, self.algorithm, self.job(data), self.scorings)


def cell(
    scale: Scale,
    dataset: str,
    tasks: tuple[int, ...],
    method: str,
    *,
    seeds: int | None = None,
    scorings: tuple[Scoring, ...] = (),
    **values: Any,
) -> Cell:
    """A cell with the published hyperparameters of its data set, the scale's and then `values`.

    Args:
        scale: the scale.
        dataset: the data set.
        tasks: tasks that are trained together.
        method: name of the algorithm.
        seeds: number of seeds; None means the scale's.
        scorings: what is scored beyond the run's own evaluations.
        **values: hyperparameters of the experiment.
    """
    shared: dict[str, Any] = {"hidden": scale.hidden}
    if scale.learning_rate is not None:
        shared["learning_rate"] = scale.learning_rate
    chosen = scale.chosen.get(dataset, {}).get(method, {})
    preset = algorithms.preset(method, dataset)
    kind = algorithms.get(method)
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    shared = {name: value for name, value in shared.items() if name in known}
    algorithm = kind(**{**preset, **shared, **chosen, **values})
    return Cell(scale, dataset, tasks, algorithm, seeds or scale.seeds, scorings)


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """Each run once, with all that is to be scored of it, in the order of first mention."""
    found: dict[str, Cell] = {}
    for one in cells:
        before = found.get(one.name)
        if before is not None:
            scorings = tuple(dict.fromkeys((*before.scorings, *one.scorings)))
            one = dataclasses.replace(before, scorings=scorings)
        found[one.name] = one
    return list(found.values())


def data_files(cells: Iterable[Cell], folder: Path) -> Mapping[str, Path]:
    """By data set its file in `folder`."""
    return {one.dataset: folder / f"{one.dataset}.npz" for one in cells}
