"""`sorl evaluate RUN`: roll a run's policies out at any budgets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from sorl.runs import Run
    from sorl.types import Budget, Member


def run(arguments: list[str]) -> None:
    """Parse and evaluate."""
    tyro.cli(_evaluate, prog="sorl evaluate", args=arguments)


def _check_own_budgets(
    run: Run,
    update: int,
    members: Sequence[Member],
    budgets: Sequence[Budget],
    episodes: int,
    seed: int,
) -> None:
    """Raise `InputError` where --save would stand in for an evaluation that the run makes itself.

    A run that was stopped before it evaluated makes up for it when it is resumed.
    """
    from sorl.errors import InputError
    from sorl.jobs.job import job_of

    job, _, _ = job_of(run.config)
    there = {(r["update"], r["task"], r["seed"], r["budget"]) for r in run.evaluations()}
    lacking = [
        budget
        for budget in job.budgets
        if budget in budgets and any((update, *m, str(budget)) not in there for m in members)
    ]
    if lacking and (episodes, seed) != (job.episodes, job.evaluation_seed):
        raise InputError(
            f"{run.path} has not evaluated its own budget {lacking[0]} yet, with {job.episodes} "
            f"episodes and seed {job.evaluation_seed}: let `sorl resume {run.path}` do it first, "
            "or leave out --save."
        )


def _evaluate(
    run: tyro.conf.Positional[Path],
    budgets: tuple[str, ...] | None = None,
    sampler: Literal["independent", "spread", "renoise"] = "independent",
    verifier: str = "own",
    choice: str = "own",
    adaptive: float | None = None,
    episodes: int = 50,
    update: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    json: bool = False,
    save: bool = False,
) -> None:
    """Success, return, length and latency of every task and seed of a run at every budget.

    The same command gives the same scores. A budget is written steps x best-of.

    Args:
        run: folder of the run.
        budgets: budgets to evaluate; without it 1x1 4x1 4x8 and the algorithm's own, if servable.
        sampler: how candidates are drawn: independently; spread over 1, 2, 4, ... steps; or in
            rounds that renoise the best.
        verifier: how the critic's heads are combined: own (as the method does), mean, min, or such
            as mean-0.5std.
        choice: how the scores decide: own (as the method does), best (the highest), central (the
            candidate nearest to all others), or such as typical-2 (the higher of the two most
            central ones) or softmax-1.
        adaptive: draw a quarter of the candidates, and the others only where the scores of the
            first have a standard deviation above this threshold.
        episodes: episodes for each budget, task and seed.
        update: an earlier evaluated update of the run; without it the newest policies.
        seed: seed of the episodes' starts and of the sampling noise.
        workers: processes that step environments; without it one a core.
        json: print JSON instead of a table.
        save: add scores of new budgets to the run's evaluations.csv, where reports find them.
    """
    import json as json_module

    from sorl.choices import Choice
    from sorl.console import print_scores, show_progress
    from sorl.deployment.policy import load_stacked
    from sorl.deployment.storage import policy_folder, read_policy
    from sorl.errors import InputError
    from sorl.evaluation import evaluate
    from sorl.inference import USUAL, Adaptive, Strategy, servable_budgets
    from sorl.jobs import restore_policies
    from sorl.runs import Run
    from sorl.types import Budget
    from sorl.verifiers import Verifier

    strategy = Strategy(
        sampler=sampler,
        verifier=Verifier.parse(verifier),
        choice=Choice.parse(choice),
        adaptive=None if adaptive is None else Adaptive(adaptive),
    )
    if save and strategy != USUAL:
        raise InputError(
            "--save keeps scores of budgets spent as the method does by itself: leave it out, or "
            "leave out --sampler, --verifier, --choice and --adaptive."
        )
    wanted = None if budgets is None else [Budget.parse(text) for text in budgets]
    opened = Run.open(run)
    environment = opened.config.get("environment")
    if environment is None:
        raise InputError(f"{run} was trained without an environment: there is none to act in.")
    if update is None:
        policies, members = load_stacked(run)
        update = read_policy(policy_folder(run, members[0])).update
    else:
        policies, members = restore_policies(opened, update)
    if wanted is None:
        wanted = servable_budgets(read_policy(policy_folder(run, members[0])).algorithm)
    if save:
        _check_own_budgets(opened, update, members, wanted, episodes, seed)
    # Locked from the beginning: a run that is being trained is refused before hours of rollouts.
    locked = opened.locked() if save else contextlib.nullcontext()
    with locked, show_progress() as on_progress:
        results = evaluate(
            policies,
            members,
            environment,
            budgets=wanted,
            strategy=strategy,
            episodes=episodes,
            workers=workers,
            seed=seed,
            on_progress=on_progress,
        )
        rows = [{"update": update, **result.row()} for result in results]
        if save:
            there = {(r["update"], r["task"], r["seed"], r["budget"]) for r in opened.evaluations()}
            opened.append_evaluations(
                row
                for row in rows
                if (row["update"], row["task"], row["seed"], row["budget"]) not in there
            )
    if json:
        answer = {
            "run": str(run),
            "environment": environment,
            "update": update,
            "sampler": sampler,
            "verifier": str(strategy.verifier),
            "choice": str(strategy.choice),
            "adaptive": adaptive,
            "results": [
                {**row, "candidates": result.candidates}
                for row, result in zip(rows, results, strict=True)
            ],
        }
        print(json_module.dumps(answer, indent=2))
        return
    title = f"{run}, update {update:,}: {len(members)} x {episodes} episodes a budget:"
    print_scores(rows, title)
