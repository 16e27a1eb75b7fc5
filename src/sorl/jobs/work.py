"""Start a job or go on with one: train into a run's folder, pausing at its milestones."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from sorl.algorithm import AbstractAlgorithm
from sorl.console import Display
from sorl.data.dataset import Dataset
from sorl.data.sources import load_dataset
from sorl.errors import InputError
from sorl.evaluation import Evaluator
from sorl.inference import check_budgets, policy_skeleton
from sorl.interruption import Interruption
from sorl.jobs.job import EXECUTION, Job, config_of, job_of
from sorl.jobs.milestones import Milestones
from sorl.recorder import Recorder, check_dashboards
from sorl.runs import INCIDENTAL, Run, check_same_config
from sorl.training import members_of, train


def start(
    out: Path | str,
    algorithm: AbstractAlgorithm[Any],
    job: Job,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train from the beginning into the new folder `out`.

    Args:
        out: the run's folder.
        algorithm: the learning rule.
        job: what to train.
        resume: go on with the run in `out` if there is one, provided its settings are these.
        quiet: print nothing.

    Raises:
        InputError: bad data or settings (then nothing is written), or a run exists in `out`.
    """
    out = Path(out)
    known = os.path.exists(out / "config.json")  # unlike Path.exists, False where we may not look
    if known and not resume:
        Run.create(out, {})  # raises the sentence that says what to do
    dataset = _load(job)
    check_budgets(policy_skeleton(algorithm), job.budgets)
    members_of(dataset.tasks, job.seeds)
    check_dashboards(tensorboard=job.tensorboard, wandb=job.wandb)
    config = config_of(algorithm, job, dataset)
    if known:
        run = Run.open(out)
        check_same_config(run.config, config, ignored=(*INCIDENTAL, EXECUTION))
    else:
        run = Run.create(out, config)
    _work(run, algorithm, job, dataset, quiet=quiet)
    return run


def resume(path: Path | str, *, quiet: bool = False) -> Run:
    """Go on with the run in `path`; a finished run stays as it is.

    Raises:
        InputError: no run, damaged files, or data that changed since.
    """
    run = Run.open(path)
    try:
        job, algorithm, fingerprint = job_of(run.config)
    except InputError as error:
        raise InputError(
            f"{run.path / 'config.json'} cannot be used: {error}; restore it from a copy, or start "
            "a new run."
        ) from error
    dataset = _load(job)
    if dataset.fingerprint != fingerprint:
        raise InputError(
            f"The data of {run.path} have changed since it was started "
            f"({job.data or job.environment} has fingerprint {dataset.fingerprint[:12]}, the run "
            f"{fingerprint[:12]}): restore them, or start a new run."
        )
    _work(run, algorithm, job, dataset, quiet=quiet)
    return run


def _load(job: Job) -> Dataset:
    """The data, read as the job says.

    Raises:
        InputError: see `load_dataset`; or fitted Q evaluation, which reads states, of images.
    """
    dataset = load_dataset(job.environment, data=job.data, tasks=job.tasks)
    if dataset.images is not None and job.environment is None and job.fitted_q_updates:
        raise InputError(
            "Fitted Q evaluation reads states, and these observations hold images: leave it out by "
            "--fitted-q-updates 0, or name an environment to evaluate in."
        )
    return dataset.reading_images(job.images)


def _work(
    run: Run,
    algorithm: AbstractAlgorithm[Any],
    job: Job,
    dataset: Dataset,
    *,
    quiet: bool,
) -> None:
    members = members_of(dataset.tasks, job.seeds)
    # Without an environment, episodes that nothing is learnt from are all there is to judge by.
    share = job.held_out if job.environment is None else 0.0
    split = dataset.split(share, seed=job.evaluation_seed)
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
        milestones = Milestones(
            run,
            algorithm,
            job,
            members,
            dataset.spec,
            split,
            recorder,
            evaluator,
            display,
            stop,
        )
        begin = milestones.restore()
        display.begin(run.path, members, job.updates, 0 if begin is None else begin[0])
        saved = time.monotonic()
        update = 0 if begin is None else begin[0]
        for snapshot in (
            ()
            if stop.requested
            else train(
                algorithm,
                split[0],
                seeds=job.seeds,
                updates=job.updates,
                batch_size=job.batch_size,
                chunk=job.log_every,
                start=begin,
            )
        ):
            update = snapshot.update
            milestones.log(snapshot)
            dead = not np.asarray(snapshot.state.alive).any()
            if milestones.is_milestone(update):
                milestones.save(update, snapshot.state, milestone=True)
                saved = time.monotonic()
                if not dead:
                    milestones.evaluate(update, snapshot.state)
            elif stop.requested or dead or time.monotonic() - saved >= job.checkpoint_seconds:
                milestones.save(update, snapshot.state, milestone=False)
                saved = time.monotonic()
            if dead:
                raise InputError(
                    f"Every task and seed of {run.path} was stopped: see events.jsonl there, and "
                    "start a new run with a smaller learning rate or weight of the Q loss."
                )
            if stop.requested:
                break
        if stop.requested:
            display.say(
                f"Stopped after update {update:,} with everything saved: continue with "
                f"`sorl resume {run.path}`."
            )
        else:
            display.finish(run)
