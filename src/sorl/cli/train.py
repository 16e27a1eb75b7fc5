"""`sorl train ALGORITHM`: train all tasks and seeds of one cell together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from sorl import algorithms, jobs
from sorl.algorithm import AbstractAlgorithm
from sorl.data.names import EnvironmentName
from sorl.errors import InputError
from sorl.types import Budget


def run(arguments: list[str]) -> None:
    """Parse and train."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        if not arguments:
            raise InputError("Name an algorithm.")
        return
    name, *arguments = arguments
    # The preset of the named environment becomes the default of each option, so that --help
    # shows what would really be used and a given option always wins.
    dataset = _dataset_named(arguments)
    preset = algorithms.preset(name, dataset) if dataset else {}
    tyro.cli(
        _command(algorithms.get(name)(**preset)),
        prog=f"sorl train {name}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _help() -> str:
    lines = []
    for name in algorithms.names():
        documentation = inspect.getmodule(algorithms.get(name)).__doc__ or ""
        lines.append(f"  {name:<8}  {documentation.strip().splitlines()[0]}")
    return "\n".join(
        [
            "usage: sorl train ALGORITHM --env NAME [--data FILE] --out RUN ...",
            "",
            "Train an algorithm on logged data, all tasks and seeds together.",
            "`sorl train ALGORITHM --help` tells all options and hyperparameters; with --env NAME,",
            "their published values for that environment.",
            "",
            *lines,
        ]
    )


def _dataset_named(arguments: list[str]) -> str | None:
    for before, after in zip(["", *arguments], arguments, strict=False):
        value = after if before == "--env" else after.removeprefix("--env=")
        if before == "--env" or after.startswith("--env="):
            try:
                return EnvironmentName.parse(value).dataset
            except InputError:
                return None  # said where the value is used
    return None


def _command(default: AbstractAlgorithm[Any]) -> Callable[..., None]:
    kind = type(default)

    def command(
        out: Path,
        env: str | None = None,
        data: Path | None = None,
        tasks: tuple[int, ...] | None = None,
        seeds: int = 1,
        updates: int = 1_000_000,
        batch_size: int = 256,
        log_every: int = 250,
        evaluate_every: int = 100_000,
        budgets: tuple[str, ...] = ("1x1", "4x1", "4x8"),
        episodes: int = 50,
        evaluation_seed: int = 0,
        workers: int | None = None,
        checkpoint_seconds: float = 60.0,
        resume: bool = False,
        tensorboard: bool | None = None,
        wandb: bool = False,
        algorithm: AbstractAlgorithm[Any] = default,
    ) -> None:
        if seeds < 1:
            raise InputError(f"--seeds {seeds} is not possible: give at least 1.")
        if env is None and data is None:
            raise InputError("Name what to learn from: --env, --data, or both.")
        job = jobs.Job(
            environment=env,
            data=data,
            tasks=tasks,
            seeds=tuple(range(seeds)),
            updates=updates,
            batch_size=batch_size,
            log_every=log_every,
            evaluate_every=evaluate_every,
            budgets=tuple(Budget.parse(text) for text in budgets),
            episodes=episodes,
            evaluation_seed=evaluation_seed,
            workers=workers,
            checkpoint_seconds=checkpoint_seconds,
            tensorboard=tensorboard,
            wandb=wandb,
        )
        jobs.start(out, algorithm, job, resume=resume)

    command.__annotations__["algorithm"] = Annotated[kind, tyro.conf.arg(name="")]
    command.__doc__ = f"""Train {kind.__name__}.

    Args:
        out: folder of the new run.
        env: OGBench environment, for example cube-single-play-singletask-v0.
        data: data file to learn from; without it the data of --env are looked up and downloaded.
        tasks: tasks of the environment to train together; without it the one it names.
        seeds: number of seeds, trained together: 0, 1, ...
        updates: gradient updates.
        batch_size: rows of one batch.
        log_every: updates between two rows of metrics.csv.
        evaluate_every: updates between two evaluations.
        budgets: budgets of every evaluation, steps x best-of.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the episodes.
        workers: processes that step environments; without it one a core.
        checkpoint_seconds: least time between two checkpoints.
        resume: go on if --out holds a run with these very settings.
        tensorboard: write TensorBoard's files; without it, where tensorboardX is installed.
        wandb: send to Weights & Biases too.
        algorithm: hyperparameters.
    """
    return command
