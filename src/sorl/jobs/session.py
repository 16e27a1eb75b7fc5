"""What every job works in: its run locked, dashboards open, signals handled; and its course."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sorl import platform
from sorl.algorithm import AbstractAlgorithm
from sorl.console import Display
from sorl.data.dataset import Dataset
from sorl.data.shards import Shards
from sorl.evaluation import Evaluator
from sorl.interruption import Interruption
from sorl.jobs.beside import BesideTraining, pays
from sorl.jobs.job import Job
from sorl.jobs.milestones import Milestones, all_stopped
from sorl.members import Snapshot
from sorl.recorder import Recorder
from sorl.runs import Run
from sorl.types import Member


class Session(NamedTuple):
    """A job at work.

    Attributes:
        run: where it writes.
        job: its settings.
        milestones: what happens around the updates.
        display: its face.
        stop: whether the user asked to stop.
    """

    run: Run
    job: Job
    milestones: Milestones
    display: Display
    stop: Interruption

    def follow(self, snapshots: Iterable[Snapshot], update: int) -> None:
        """Log, save and evaluate as training goes on from `update`, until it ends or is stopped.

        Raises:
            InputError: every member was stopped.
        """
        run, job, milestones = self.run, self.job, self.milestones
        saved = time.monotonic()
        for snapshot in () if self.stop.requested else snapshots:
            update = snapshot.update
            milestones.log(snapshot)
            dead = not np.asarray(snapshot.state.alive).any()
            milestone = milestones.is_milestone(update)
            waited = time.monotonic() - saved
            if milestone or dead or self.stop.requested or waited >= job.checkpoint_seconds:
                milestones.save(update, snapshot.state, milestone=milestone)
                saved = time.monotonic()
            # After saving: an evaluation that died must not cost the updates since.
            milestones.collect()
            if milestone and not dead:
                milestones.evaluate(update, snapshot.state)
            if dead:
                milestones.collect(wait=True)  # the scores of an earlier milestone count
                raise all_stopped(run)
            if self.stop.requested:
                break
        milestones.collect(wait=True)
        if self.stop.requested:
            self.display.say(
                f"Stopped after update {update:,} with everything saved: continue with "
                f"`sorl resume {run.path}`."
            )
        else:
            self.display.finish(run)


@contextlib.contextmanager
def session(
    run: Run,
    algorithm: AbstractAlgorithm[Any],
    job: Job,
    members: Sequence[Member],
    split: tuple[Dataset | Shards, Dataset | None],
    *,
    first: int = 0,
    quiet: bool,
) -> Iterator[Session]:
    """Work on a run until the block ends.

    Args:
        run: the run.
        algorithm: the learning rule.
        job: its settings.
        members: tasks and seeds.
        split: the data that are learnt from, and those that are held out.
        first: the update that it begins with.
        quiet: print nothing.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.locked())
        recorder = stack.enter_context(
            Recorder(run.path, run.config, tensorboard=job.tensorboard, wandb=job.wandb)
        )
        evaluator = (
            None
            if job.environment is None
            else stack.enter_context(Evaluator(job.environment, workers=job.workers))
        )
        display = stack.enter_context(Display(quiet=quiet))
        stop = stack.enter_context(
            Interruption(
                display.stopping,
                "stopped at once; what came after the last checkpoint is lost, "
                f"`sorl resume {run.path}` makes up for it.",
            ).handled()
        )
        beside = None
        if evaluator is not None and (
            pays() if job.evaluate_beside is None else job.evaluate_beside
        ):
            platform.cpu()  # refused now rather than at the first milestone
            beside = stack.enter_context(BesideTraining(stop))
        milestones = Milestones(
            run, algorithm, job, members, split, first, recorder, evaluator, beside, display, stop
        )
        yield Session(run, job, milestones, display, stop)
