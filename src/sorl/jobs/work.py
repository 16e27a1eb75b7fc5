"""Start a job or go on with one: train into a run's folder, pausing at its milestones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sorl.algorithm import AbstractAlgorithm
from sorl.arithmetic import check_devices
from sorl.data.dataset import Dataset
from sorl.data.shards import Shards, is_shards
from sorl.data.sources import load_dataset, open_stream
from sorl.errors import InputError
from sorl.inference import check_budgets, policy_skeleton
from sorl.jobs.acting import check_environment
from sorl.jobs.finetuning import FINETUNING
from sorl.jobs.job import EXECUTION, Job, check_fingerprint, config_of, settings_in
from sorl.jobs.online_work import resume_finetuning
from sorl.jobs.outcome import ended, tables_alone
from sorl.jobs.session import session
from sorl.members import check_layout, members_of
from sorl.recorder import check_dashboards
from sorl.runs import INCIDENTAL, Run, check_same_config
from sorl.training import train


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
        InputError: bad data or settings, or an environment that is not that of the data (then
            nothing is written), or a run exists in `out`, or one that lacks all checkpoints.
        WorkerError: a process that steps environments died.
    """
    out = Path(out)
    known = os.path.exists(out / "config.json")  # unlike Path.exists, False where we may not look
    if known and not resume:
        Run.create(out, {})  # raises the sentence that says what to do
    dataset = load_data(job)
    check_budgets(policy_skeleton(algorithm), job.budgets)
    check_devices(job.arithmetic)
    check_layout(members_of(dataset.tasks, job.seeds), job.batch_devices)
    check_dashboards(tensorboard=job.tensorboard, wandb=job.wandb)
    config = config_of(algorithm, job, dataset)
    if known:
        check_same_config(Run.open(out).config, config, ignored=(*INCIDENTAL, EXECUTION))
    if not (known and ended(out, job)):
        check_environment(job, dataset)
    run = Run.open(out) if known else Run.create(out, config)
    _work(run, algorithm, job, dataset, quiet=quiet)
    return run


def resume(path: Path | str, *, quiet: bool = False) -> Run:
    """Go on with the run in `path`; a finished run stays as it is.

    Raises:
        InputError: no run, damaged files, or data or an environment that changed since.
        WorkerError: a process that steps environments died.
    """
    run = Run.open(path)
    if FINETUNING in run.config:
        return resume_finetuning(run, quiet=quiet)
    job, algorithm, fingerprint = settings_in(run)
    dataset = load_data(job)
    check_fingerprint(run, job.data or job.environment, dataset, fingerprint)
    if not ended(run.path, job):
        check_environment(job, dataset)
    _work(run, algorithm, job, dataset, quiet=quiet)
    return run


def load_data(job: Job) -> Dataset | Shards:
    """The data of a job, its images read as the job says.

    Raises:
        InputError: see `load_dataset` and `open_stream`; or fitted Q evaluation, which reads
            states, of images.
    """
    if isinstance(job.data, Path | str) and is_shards(job.data):
        return open_stream(job.environment, job.data, job.tasks)
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
    dataset: Dataset | Shards,
    *,
    quiet: bool,
) -> None:
    if tables_alone(run.path, job):  # training would begin anew, and drop what they tell
        raise InputError(
            f"{run.path} holds the tables of a run that has ended, without its checkpoints: bring "
            "them too, or name another folder, since nothing can be trained or scored in this one."
        )
    members = members_of(dataset.tasks, job.seeds)
    # Without an environment, episodes that nothing is learnt from are all there is to judge by.
    split: tuple[Dataset | Shards, Dataset | None] = dataset, None
    if job.environment is None and isinstance(dataset, Dataset):
        split = dataset.split(job.held_out, seed=job.evaluation_seed)
    with session(run, algorithm, job, members, split, quiet=quiet) as work:
        begin = work.milestones.restore()
        done = 0 if begin is None else begin[0]
        work.display.begin(run.path, members, job.updates, done)
        snapshots = train(
            algorithm,
            split[0],
            seeds=job.seeds,
            updates=job.updates,
            batch_size=job.batch_size,
            chunk=job.log_every,
            arithmetic=job.arithmetic,
            batch_devices=job.batch_devices,
            start=begin,
        )
        work.follow(snapshots, done)
