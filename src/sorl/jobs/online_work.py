"""Fine-tune a run in an environment, into a run of its own; or go on with that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sorl import checkpoint
from sorl.algorithm import AbstractAlgorithm
from sorl.collection import Collector
from sorl.data.dataset import Dataset
from sorl.data.names import EnvironmentName
from sorl.data.sources import load_dataset, rules_of_kept_rewards
from sorl.errors import InputError
from sorl.inference import check_budgets, policy_skeleton, servable_budgets
from sorl.jobs.acting import check_fit
from sorl.jobs.finetuning import (
    FINETUNING,
    Finetuning,
    Origin,
    absolute,
    begun,
    check_room,
    like_of,
    read_section,
    section_of,
)
from sorl.jobs.job import IMAGES, Job, check_fingerprint, config_of, settings_in
from sorl.jobs.session import Session, session
from sorl.members import TrainingState, members_of
from sorl.mixed_precision import in_arithmetic
from sorl.online import Online, Plan, learn_online
from sorl.own_names import is_own
from sorl.recorder import check_dashboards
from sorl.runs import Run
from sorl.types import Member


def finetune(
    run: Path | str, out: Path | str, finetuning: Finetuning, *, quiet: bool = False
) -> Run:
    """Learn on from a run's newest checkpoint by acting, into the new folder `out`.

    All tasks and seeds of the run go on together, each with environments and rows of its own; its
    logged data stay part of what is learnt from. The numbers of updates and the optimisers go on
    too. The first evaluation is that of the state before any step. The run is not changed. Of a
    run that was fine-tuned itself, the rows that it made are not taken along.

    Args:
        run: folder of the run.
        out: folder of the new run, which `sorl.jobs.resume` goes on with.
        finetuning: how to learn.
        quiet: print nothing.

    Returns:
        The new run.

    Raises:
        InputError: there is no run or no checkpoint in it, its data have changed, the environment
            is not one of the data, or a budget cannot be served (then nothing is written); or a run
            exists in `out`.
        WorkerError: a worker process died.
    """
    parent, out = Run.open(run), Path(out)
    if os.path.exists(out / "config.json"):
        Run.create(out, {})  # raises the sentence that says what to do
    job, algorithm, fingerprint = settings_in(parent)
    if IMAGES in parent.config:
        raise InputError(
            f"{parent.path} was trained on images, and fine-tuning keeps its own rows as numbers, "
            "thirty-six kilobytes each and more: train on states, or offline."
        )
    plan = finetuning.plan(algorithm.own_budget)
    skeleton = policy_skeleton(algorithm)
    check_budgets(skeleton, [plan.budget])
    first = _newest(parent)
    own = finetuning.job(job, first, plan, servable_budgets(algorithm))
    check_budgets(skeleton, own.budgets)
    check_dashboards(tensorboard=own.tensorboard, wandb=own.wandb)
    environment = _environment(own, job, parent)
    state, metadata = checkpoint.restore(parent.checkpoints, like_of(parent.config))
    origin = Origin(
        path=absolute(parent.path),
        update=int(metadata["update"]),
        checkpoint=checkpoint.digest(parent.checkpoints, int(metadata["update"])),
        environment=_data_environment(parent, job),
        acted=_acted(parent),
    )
    if origin.update != first:  # the newest was damaged, and has warned
        own = finetuning.job(job, origin.update, plan, servable_budgets(algorithm))
    if not np.asarray(state.alive).any():
        raise InputError(
            f"Every task and seed of {parent.path} was stopped: there is nothing to learn on from."
        )
    dataset = load_dataset(origin.environment, data=own.data, tasks=job.tasks)
    check_fingerprint(parent, own.data or origin.environment, dataset, fingerprint)
    members = members_of(dataset.tasks, own.seeds)
    check_room(dataset.spec, plan, len(members))
    with _collector(own, environment, members, plan, dataset, parent) as collector:
        section = section_of(plan, origin, collector.sizes)
        new = Run.create(out, {**config_of(algorithm, own, dataset), FINETUNING: section})
        _work(new, algorithm, own, dataset, collector, members, state, quiet=quiet)
    return new


def resume_finetuning(run: Run, *, quiet: bool = False) -> Run:
    """Go on with a run that `finetune` began; a finished run stays as it is.

    Raises:
        InputError: damaged files, or data or an environment that changed since.
        WorkerError: a worker process died.
    """
    job, algorithm, fingerprint = settings_in(run)
    plan, origin, sizes = read_section(run.config)
    dataset = load_dataset(origin.environment, data=job.data, tasks=job.tasks)
    check_fingerprint(run, job.data or origin.environment, dataset, fingerprint)
    members = members_of(dataset.tasks, job.seeds)
    state = None
    if checkpoint.latest(run.checkpoints) is None:
        state = _state_of_parent(origin)
    with _collector(job, str(job.environment), members, plan, dataset, run) as collector:
        if collector.sizes.max_episode_steps != sizes.max_episode_steps:
            raise InputError(
                f"Episodes of {job.environment} have at most {collector.sizes.max_episode_steps} "
                f"steps and had {sizes.max_episode_steps} when {run.path} was started: restore the "
                "environment, or start a new run."
            )
        _work(run, algorithm, job, dataset, collector, members, state, quiet=quiet)
    return run


def _work(
    run: Run,
    algorithm: AbstractAlgorithm[Any],
    job: Job,
    dataset: Dataset,
    collector: Collector,
    members: Sequence[Member],
    parent: TrainingState | None,
    *,
    quiet: bool,
) -> None:
    """Begin with the state of a parent, or go on from the newest checkpoint."""
    plan, origin, _ = read_section(run.config)
    first = origin.update
    with session(run, algorithm, job, members, (dataset, None), first=first, quiet=quiet) as work:
        work.display.say(
            f"Fine-tuning {origin.path}, update {first:,}: {plan.steps:,} steps of each task and "
            f"seed in {job.environment}, acting at {plan.budget}."
        )
        start = work.milestones.restore()
        if start is None:
            assert parent is not None
            if sentence := _other_rewards(origin.environment, job):
                work.run.append_event(first, sentence)
                work.display.say(sentence)
            collector.begin(origin.acted)  # each step of those before began one episode at most
            start = first, begun(parent, dataset.spec, plan, collector.episodes)
            work.milestones.save(*start, milestone=True)
            work.milestones.evaluate(*start)
        elif start[0] < job.updates:
            start = start[0], _brought_back(work, collector, plan, members, first, *start)
        work.display.begin(run.path, members, job.updates, start[0])
        snapshots = learn_online(
            in_arithmetic(algorithm, job.arithmetic),
            dataset,
            collector,
            plan,
            members=members,
            first=first,
            acted=origin.acted,
            start=start,
            batch_size=job.batch_size,
            chunk=job.log_every,
            stopping=lambda: work.stop.requested,
        )
        work.follow(snapshots, start[0])
        if work.stop.requested and plan.start_steps and checkpoint.latest(run.checkpoints) == first:
            work.display.say("Steps before the first update are not kept: they are made again.")


def _other_rewards(environment: str | None, job: Job) -> str | None:
    """That logged rows may have other rewards than those of acting, where they may."""
    assert job.environment is not None
    doubtful = [
        f"{source} ({'whose origin is unknown' if rule is None else rule})"
        for source, rule in rules_of_kept_rewards(environment, job.data).items()
        if (rule is None and not is_own(job.environment)) or rule not in (None, "logged")
    ]
    if not doubtful:
        return None
    return (
        f"Logged rows keep the rewards and masks in {', '.join(doubtful)}, and own rows get those "
        f"of {job.environment}: if they do not mean the same, the critic learns from both mixed "
        "up, so fine-tune a run whose data have the environment's rewards instead."
    )


def _brought_back(
    work: Session,
    collector: Collector,
    plan: Plan,
    members: Sequence[Member],
    first: int,
    update: int,
    state: TrainingState,
) -> TrainingState:
    """The state with the environments where it left them; where they are not, that is told."""
    online: Online = state.online
    replay, size = online.replay, plan.steps_at(update - first)
    for member, environment in collector.restore(online.episodes):
        sentence = (
            f"An episode of {members[member]} could not be brought back, since the environment "
            "does not repeat itself; a new one was started, so this run is not the one that it "
            "would have been."
        )
        if size:
            replay = replay.cut(member, environment, size)
        work.run.append_event(update, sentence)
        work.display.say(sentence)
    return state._replace(online=Online(replay, online.episodes))


def _newest(parent: Run) -> int:
    update = checkpoint.latest(parent.checkpoints)
    if update is None:
        raise InputError(
            f"{parent.path} has no checkpoint to learn on from: train it first, for example with "
            f"`sorl resume {parent.path}`."
        )
    return update


def _state_of_parent(origin: Origin) -> TrainingState:
    """The state that fine-tuning begins with, for a run that was killed before it held it."""
    parent = Run.open(origin.path)
    there = origin.update in checkpoint.updates(parent.checkpoints)
    if not there or checkpoint.digest(parent.checkpoints, origin.update) != origin.checkpoint:
        raise InputError(
            f"{origin.path} no longer holds the checkpoint of update {origin.update} that "
            "fine-tuning was to begin with: start a new run."
        )
    return checkpoint.restore(parent.checkpoints, like_of(parent.config), origin.update)[0]


def _environment(job: Job, before: Job, parent: Run) -> str:
    """The environment to act in; another one than the parent's must be of one of its tasks."""
    if job.environment is None:
        raise InputError(
            f"{parent.path} was trained without an environment: name the one to act in with --env."
        )
    if job.environment == before.environment or is_own(job.environment) or job.tasks == (0,):
        return job.environment
    name = EnvironmentName.parse(job.environment)
    tasks = job.tasks or ()
    if name.task not in tasks:
        raise InputError(
            f"{parent.path} was trained on task(s) {', '.join(map(str, tasks))}, not on task "
            f"{name.task} of {job.environment}: name its own environment with --env."
        )
    return job.environment


def _acted(parent: Run) -> int:
    """Steps that each member has made in the parent and in those before it."""
    if FINETUNING not in parent.config:
        return 0
    plan, origin, _ = read_section(parent.config)
    return origin.acted + plan.steps


def _data_environment(parent: Run, job: Job) -> str | None:
    """By which environment the data of the parent are looked up and labelled."""
    if FINETUNING in parent.config:
        return read_section(parent.config)[1].environment
    return job.environment


@contextlib.contextmanager
def _collector(
    job: Job,
    environment: str,
    members: Sequence[Member],
    plan: Plan,
    dataset: Dataset,
    run: Run,
) -> Iterator[Collector]:
    """The environments, checked to be ones that the policies can act in."""
    with Collector(
        environment,
        members,
        environments=plan.environments,
        workers=job.workers,
        units=dataset.units,
    ) as collector:
        check_fit(environment, collector.sizes, dataset, f"{run.path} was trained on")
        yield collector
