"""One piece of a launch: train a run to its end and score it; done again, go on.

Whoever does it, in whichever process, needs the folder alone: `work.json` in it holds everything.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from sorl import algorithms, files
from sorl.algorithm import AbstractAlgorithm
from sorl.choices import Choice
from sorl.data.images import ImageSettings
from sorl.errors import InputError
from sorl.jobs.job import IMAGES, Job, paths, settings_of, sources
from sorl.jobs.outcome import diverged, ended, is_run, tables_alone
from sorl.jobs.scoring import Scoring, complete, score
from sorl.jobs.work import start
from sorl.runs import Run, check_same_config
from sorl.types import Budget

FILE = "work.json"

_LOOK_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Work:
    """A run to train and to score.

    Attributes:
        name: what it is called in tables; no other work of a launch has the same.
        folder: its folder: `run` in it is the run, `work.json` this description.
        algorithm: the learning rule.
        job: what to train.
        scorings: what to score beyond the evaluations of training.
    """

    name: str
    folder: Path
    algorithm: AbstractAlgorithm[Any]
    job: Job
    scorings: tuple[Scoring, ...] = ()

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"

    def done(self) -> bool:
        """Whether the run is there, has ended and has all of its scores.

        Its checkpoints and policies may have been left behind. Its data are not compared: files may
        have moved, and to know them by their content they would have to be loaded.

        Raises:
            InputError: the run that ended there had other settings or tasks, or is damaged.
        """
        if not (ended(self.run, self.job) or tables_alone(self.run, self.job)):
            return False
        run, wanted = Run.open(self.run), settings_of(self.algorithm, self.job)
        if self.job.tasks is not None:
            wanted["tasks"] = list(self.job.tasks)
        if IMAGES in run.config:
            wanted[IMAGES] = dataclasses.asdict(self.job.images)
        check_same_config(run.config, wanted)
        return complete(run, self.scorings)

    def write(self) -> None:
        """Write work.json, for `read` in another process.

        Raises:
            InputError: it cannot be written.
        """
        with files.explained("create", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / FILE, self._as_json())

    @classmethod
    def read(cls, folder: Path | str) -> Work:
        """The work of a folder.

        Raises:
            InputError: work.json is missing, damaged or of another version.
        """
        folder = Path(folder)
        description = files.read_json(folder / FILE)
        try:
            job = {name: _JOB.get(name, _same)(value) for name, value in description["job"].items()}
            return cls(
                name=str(description["name"]),
                folder=folder,
                algorithm=algorithms.build(description["algorithm"]),
                job=Job(**job),
                scorings=tuple(map(_scoring, description["scorings"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise InputError(
                f"{folder / FILE} cannot be used ({error}): launch again with this version."
            ) from error

    def await_turn(self, seconds: float) -> None:
        """Wait at most so long while another process works on the run.

        One that lost its launcher, or the connection to it, may still be saving.
        """
        end = time.monotonic() + seconds
        while is_run(self.run) and time.monotonic() < end:
            try:
                with Run.open(self.run).locked():
                    return
            except InputError:  # what is wrong beyond that, `perform` says
                time.sleep(_LOOK_SECONDS)

    def perform(self, *, quiet: bool = True) -> None:
        """Train what is left to train, then score what is left to score.

        A run whose members all diverged has ended, and is no error.

        Raises:
            InputError: bad data or settings, another process works on the run, or it lacks scores
                and was brought without its checkpoints.
            WorkerError: a process that steps environments died.
        """
        if self.done():
            return
        try:
            if not ended(self.run, self.job):
                start(self.run, self.algorithm, self.job, resume=True, quiet=quiet)
        except InputError:
            if not (is_run(self.run) and diverged(Run.open(self.run))):
                raise
        finally:
            jax.clear_caches()  # the program of one work serves no other
        if ended(self.run, self.job):  # else the user stopped it
            score(Run.open(self.run), self.scorings, workers=self.job.workers)

    def _as_json(self) -> dict[str, Any]:
        job = dataclasses.asdict(self.job)
        job["data"] = paths(self.job.data)
        job["budgets"] = list(map(str, self.job.budgets))
        scorings = [
            dataclasses.asdict(scoring)
            | {"budgets": list(map(str, scoring.budgets)), "choice": str(scoring.choice)}
            for scoring in self.scorings
        ]
        return {
            "name": self.name,
            "algorithm": algorithms.describe(self.algorithm),
            "job": job,
            "scorings": scorings,
        }


def _same(value: Any) -> Any:
    return value


def _numbers(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _budgets(values: Any) -> tuple[Budget, ...]:
    return tuple(map(Budget.parse, values))


def _images(values: Any) -> ImageSettings:
    return ImageSettings(**values)


_JOB = {
    "tasks": _numbers,
    "seeds": _numbers,
    "budgets": _budgets,
    "data": sources,
    "images": _images,
}


def _scoring(values: Any) -> Scoring:
    given = {**values, "budgets": _budgets(values["budgets"])}
    return Scoring(**{**given, "choice": Choice.parse(values["choice"])})
