"""Scores of a run's last evaluated updates at budgets and by choices that its training left out.

They stand in the run's folder, in `scores.csv`: update, task, seed, budget, choice and what was
reached. A row that is there is never made again, so whoever asks for more pays for more only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sorl import tables
from sorl.choices import OWN, Choice
from sorl.evaluation import Evaluator
from sorl.inference import Strategy, check, policy_skeleton
from sorl.jobs.job import Job, job_of
from sorl.jobs.milestones import restore_policies
from sorl.jobs.outcome import diverged, members
from sorl.runs import Run
from sorl.types import Budget

FILE = "scores.csv"


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What to score.

    Args:
        budgets: the budgets.
        choice: which of several candidates acts.
        milestones: how many of the run's evaluated updates, counted from its last.
        episodes: episodes for each budget, task and seed.
        seed: seed of the episodes' starts and of the sampling noise.
    """

    budgets: tuple[Budget, ...]
    choice: Choice = OWN
    milestones: int = 1
    episodes: int = 50
    seed: int = 0

    def updates(self, job: Job) -> list[int]:
        """The updates that are scored, ascending."""
        every = [*range(job.evaluate_every, job.updates, job.evaluate_every), job.updates]
        return every[-self.milestones :]


def score(run: Run, scorings: Sequence[Scoring], *, workers: int | None = None) -> None:
    """Roll out what is missing and add it to the run's scores.

    Args:
        run: a run that has ended; of one whose members all diverged nothing is scored.
        scorings: what is wanted.
        workers: processes that step environments; None means one a core.

    Raises:
        InputError: a budget that the policy cannot serve by the choice, another process works on
            the run, or files are damaged.
        WorkerError: a worker process died.
    """
    job, algorithm, _ = job_of(run.config)
    skeleton = policy_skeleton(algorithm)
    for scoring in scorings:
        for budget in scoring.budgets:
            check(skeleton, budget, Strategy(choice=scoring.choice))
    if job.environment is None or diverged(run) or complete(run, scorings):
        return
    everyone = members(run.config)
    updates = sorted({update for scoring in scorings for update in scoring.updates(job)})
    with run.locked(), Evaluator(job.environment, workers=workers) as evaluator:
        for update in updates:
            policies = None
            for scoring in scorings:
                if update not in scoring.updates(job):
                    continue
                for budget in scoring.budgets:
                    if _has(scores(run), everyone, update, budget, scoring):
                        continue
                    if policies is None:
                        policies, _ = restore_policies(run, update)
                    results = evaluator.evaluate(
                        policies,
                        everyone,
                        budgets=[budget],
                        strategy=Strategy(choice=scoring.choice),
                        episodes=scoring.episodes,
                        seed=scoring.seed,
                    )
                    tables.append_rows(
                        run.path / FILE,
                        [{"update": update, **result.row(), **_how(scoring)} for result in results],
                    )


def scores(run: Run) -> list[dict[str, float | str]]:
    """The rows of scores.csv; empty cells are left out."""
    return tables.read_rows(run.path / FILE)


def complete(run: Run, scorings: Iterable[Scoring]) -> bool:
    """Whether everything that is wanted of a run that has ended is there."""
    if diverged(run):
        return True
    job, _, _ = job_of(run.config)
    everyone, rows = members(run.config), scores(run)
    return all(
        _has(rows, everyone, update, budget, scoring)
        for scoring in scorings
        for update in scoring.updates(job)
        for budget in scoring.budgets
    )


def _how(scoring: Scoring) -> dict[str, Any]:
    return {"choice": str(scoring.choice), "evaluation_seed": scoring.seed}


def _has(
    rows: Iterable[Mapping[str, Any]],
    everyone: Iterable[tuple[int, int]],
    update: int,
    budget: Budget,
    scoring: Scoring,
) -> bool:
    wanted = {"update": update, "budget": str(budget), "episodes": scoring.episodes}
    wanted |= _how(scoring)
    there = {
        (row["task"], row["seed"])
        for row in rows
        if all(row.get(name) == value for name, value in wanted.items())
    }
    return set(everyone) <= there
