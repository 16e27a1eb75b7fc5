"""`sorl finetune RUN`: learn on from a run by acting in its environment."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and fine-tune."""
    tyro.cli(_finetune, prog="sorl finetune", args=arguments)


def _finetune(
    run: tyro.conf.Positional[Path],
    out: Path,
    steps: int,
    env: str | None = None,
    data: tuple[str, ...] = (),
    act_budget: str | None = None,
    environments: int = 1,
    updates_per_step: int = 1,
    start_steps: int = 0,
    offline_share: float | None = None,
    noise: float = 0.0,
    batch_size: int | None = None,
    log_every: int = 200,
    evaluate_every: int = 10_000,
    budgets: tuple[str, ...] | None = None,
    episodes: int | None = None,
    evaluation_seed: int | None = None,
    workers: int | None = None,
    checkpoint_seconds: float = 60.0,
    tensorboard: bool | None = None,
    wandb: bool = False,
) -> None:
    """Learn on from a run by acting in its environment, all of its tasks and seeds together.

    The result is a run of its own: `sorl resume` goes on with it, `sorl report` and `sorl
    evaluate` take it. Its first evaluation is that of the state before any step. Updates are
    counted on from those of RUN, which is not changed; options that are left out take its values.

    Args:
        run: folder of the run to learn on from, at its newest checkpoint.
        out: folder of the new run.
        steps: steps of every task and seed in its environments.
        env: environment to act in; needed if RUN was trained without one.
        data: the data of RUN, if they have moved; their content must be the same.
        act_budget: steps x best-of of the acting; without it the algorithm's own.
        environments: environments of every task and seed.
        updates_per_step: updates for each step in an environment.
        start_steps: steps before the first update.
        offline_share: probability of each row of a batch to be one of the data, such as 0.5;
            without it rows are drawn uniformly from the data and the task and seed's own.
        noise: standard deviation of normal noise added to actions in [-1, 1]; policies that do not
            draw their actions explore in no other way.
        batch_size: rows of one batch.
        log_every: steps between two rows of metrics.csv.
        evaluate_every: steps between two evaluations.
        budgets: steps x best-of in every evaluation.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the evaluations' episodes.
        workers: processes that step environments; without it one a core.
        checkpoint_seconds: least time between two checkpoints.
        tensorboard: write TensorBoard's files; without it, where tensorboardX is installed.
        wandb: send to Weights & Biases too.
    """
    from sorl import jobs
    from sorl.data.sources import source_of
    from sorl.types import Budget

    sources = tuple(map(source_of, data))
    jobs.finetune(
        run,
        out,
        jobs.Finetuning(
            steps=steps,
            environment=env,
            data=sources[0] if len(sources) == 1 else sources or None,
            act_budget=None if act_budget is None else Budget.parse(act_budget),
            environments=environments,
            updates_per_step=updates_per_step,
            start_steps=start_steps,
            offline_share=offline_share,
            noise=noise,
            batch_size=batch_size,
            log_every=log_every,
            evaluate_every=evaluate_every,
            budgets=None if budgets is None else tuple(map(Budget.parse, budgets)),
            episodes=episodes,
            evaluation_seed=evaluation_seed,
            workers=workers,
            checkpoint_seconds=checkpoint_seconds,
            tensorboard=tensorboard,
            wandb=wandb,
        ),
    )
