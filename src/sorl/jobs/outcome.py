"""How a run came out: whether it has ended, and which of its members diverged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sorl import checkpoint
from sorl.jobs.job import Job
from sorl.members import members_of
from sorl.runs import Run
from sorl.types import Member


def is_run(folder: Path) -> bool:
    """Whether a run was begun in the folder."""
    return (folder / "config.json").is_file()


def ended(folder: Path, job: Job) -> bool:
    """Whether the run of a job is there and has nothing left to do; diverged, it has ended too."""
    if not is_run(folder):
        return False
    run = Run.open(folder)
    if diverged(run):
        return True
    if checkpoint.latest(run.checkpoints) != job.updates:
        return False
    return job.environment is None or _evaluated(run, job)


def tables_alone(folder: Path, job: Job) -> bool:
    """Whether the folder holds what a run of the job that has ended wrote, but no checkpoint.

    Such folders are brought from other machines, where checkpoints would be most of what is sent.
    """
    if job.environment is None or not is_run(folder):
        return False
    run = Run.open(folder)
    return checkpoint.latest(run.checkpoints) is None and _evaluated(run, job)


def _evaluated(run: Run, job: Job) -> bool:
    """Whether every member was evaluated at the last update."""
    done = {
        (row.get("task"), row.get("seed"), row.get("budget"))
        for row in run.evaluations()
        if row.get("update") == job.updates
    }
    wanted = {(*member, str(budget)) for member in members(run.config) for budget in job.budgets}
    return wanted <= done


def diverged(run: Run) -> bool:
    """Whether every member was stopped."""
    return stopped_members(run.config, run.events()) == set(members(run.config))


def stopped_members(config: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> set[Member]:
    """The members of a run, given its config and its events, that diverged and were stopped."""
    stopped = {(event.get("task"), event.get("seed")) for event in events}
    return {member for member in members(config) if member in stopped}


def members(config: Mapping[str, Any]) -> tuple[Member, ...]:
    """The members of a run, given its config."""
    return members_of(config["tasks"], config["seeds"])
