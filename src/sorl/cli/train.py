"""`sorl train ALGORITHM`: train all tasks and seeds of one cell together.

The options of a training stand here for `sorl tune` too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import tyro

from sorl import algorithms, jobs
from sorl.algorithm import AbstractAlgorithm
from sorl.arithmetic import Arithmetic
from sorl.data.images import USUAL_IMAGES, ImageSettings
from sorl.data.names import EnvironmentName
from sorl.data.sources import source_of
from sorl.errors import InputError
from sorl.inference import servable_budgets
from sorl.types import Budget, EncoderName

Command = Callable[..., None]

_USAGE = """\
usage: sorl train ALGORITHM --env NAME [--data FILE] --out RUN ...

Train an algorithm on logged data, all tasks and seeds together.
`sorl train ALGORITHM --help` tells all options and hyperparameters; with --env NAME,
their published values for that environment."""


def run(arguments: list[str]) -> None:
    """Parse and train."""
    run_for_algorithm("train", _USAGE, _command, arguments)


@dataclasses.dataclass(frozen=True)
class Options:
    """What any training is given besides its algorithm and budgets.

    Args:
        env: OGBench environment, for example cube-single-play-singletask-v0; or minari:NAME, or
            gym:ID for data of your own.
        data: data file to learn from, or minari:NAME; several are mixed, by weights such as
            a.npz:0.7 b.npz:0.3; or a folder of shards (sorl shard), which is streamed. Without it
            the data of --env are looked up and downloaded.
        tasks: tasks of the environment to train together; without it the one it names.
        seeds: number of seeds, trained together: 0, 1, ...
        updates: gradient updates.
        batch_size: rows of one batch.
        arithmetic: in which numbers networks are multiplied in training; tf32 on NVIDIA GPUs alone.
        log_every: updates between two rows of metrics.csv.
        evaluate_every: updates between two evaluations.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the evaluation's episodes; without an environment, of which
            episodes are held out.
        workers: processes that step environments; without it one a core.
        batch_devices: devices that share the rows of every batch.
        evaluate_beside: evaluate on the CPU while training goes on; without it, where it is not the
            CPU that trains.
        checkpoint_seconds: least time between two checkpoints.
        tensorboard: write TensorBoard's files; without it, where tensorboardX is installed.
        wandb: send to Weights & Biases too.
        encoder: what makes features of images, where observations hold any.
        frame_stack: frames in one observation of images.
        augment_probability: share of the images that are shifted by some pixels at random.
    """

    env: str | None = None
    data: tuple[str, ...] = ()
    tasks: tuple[int, ...] | None = None
    seeds: int = 1
    updates: int = 1_000_000
    batch_size: int = 256
    arithmetic: Arithmetic = "float32"
    log_every: int = 250
    evaluate_every: int = 100_000
    episodes: int = 50
    evaluation_seed: int = 0
    workers: int | None = None
    batch_devices: int = 1
    evaluate_beside: bool | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool | None = None
    wandb: bool = False
    encoder: EncoderName = USUAL_IMAGES.encoder
    frame_stack: int = USUAL_IMAGES.frame_stack
    augment_probability: float = USUAL_IMAGES.augment_probability

    def job(self, budgets: Iterable[Budget]) -> jobs.Job:
        """The job that these options describe.

        Raises:
            InputError: an option makes no sense.
        """
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds} is not possible: give at least 1.")
        if self.env is None and not self.data:
            raise InputError("Name what to learn from: --env, --data, or both.")
        sources = tuple(map(source_of, self.data))
        reading = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ImageSettings)
        }
        own = ("env", "seeds", "data", *reading)
        others = {name: value for name, value in vars(self).items() if name not in own}
        return jobs.Job(
            environment=self.env,
            data=sources[0] if len(sources) == 1 else sources or None,
            seeds=tuple(range(self.seeds)),
            budgets=tuple(dict.fromkeys(budgets)),
            images=ImageSettings(**reading),
            **others,
        )


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
    """What a training may be given that needs no environment.

    Args:
        held_out: without --env, the share of the episodes kept for off-policy evaluation.
        fitted_q_updates: without --env, updates of fitted Q evaluation; 0 leaves it out.
    """

    held_out: float = 0.1
    fitted_q_updates: int = 5000


def run_for_algorithm(
    command: str,
    usage: str,
    build: Callable[[AbstractAlgorithm[Any]], Command],
    arguments: list[str],
) -> None:
    """Run a command whose first argument names an algorithm.

    Args:
        command: name of the command.
        usage: its help as long as no algorithm is named; the algorithms are listed below it.
        build: makes the function whose parameters are the options, given the algorithm with the
            preset of the environment that the arguments name. `prepared` makes it ready.
        arguments: what follows the command's name.

    Raises:
        InputError: there is no algorithm of that name, or whatever the function raises.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("\n".join([usage, "", *_algorithms()]))
        if not arguments:
            raise InputError("Name an algorithm.")
        return
    name, *arguments = arguments
    # The preset of the named environment becomes the default of each option, so that --help
    # shows what would really be used and a given option always wins.
    dataset = _dataset_named(arguments)
    preset = algorithms.preset(name, dataset) if dataset else {}
    tyro.cli(
        build(algorithms.get(name)(**preset)),
        prog=f"sorl {command} {name}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def prepared(
    command: Command,
    default: AbstractAlgorithm[Any],
    documentation: str,
    options: type[Options] = Options,
) -> Command:
    """Give a command's function the types and words that depend on the algorithm.

    Args:
        command: takes `algorithm`, `options` and `budgets` among its parameters.
        default: the algorithm with its defaults.
        documentation: docstring of the command, up to the parameters it shares with others.
        options: which options of a training it has.
    """
    unnamed = tyro.conf.arg(name="")
    hint = f"(default: {' '.join(map(str, servable_budgets(default)))})"
    command.__annotations__ |= {
        "algorithm": Annotated[type(default), unnamed],
        "options": Annotated[options, unnamed],
        "budgets": Annotated[tuple[str, ...] | None, tyro.conf.arg(help_behavior_hint=hint)],
    }
    command.__doc__ = f"""{documentation}
        budgets: steps x best-of in every evaluation; the default holds what the policy can serve.
        options: what to train.
        algorithm: hyperparameters.
    """
    return command


def _description(algorithm: AbstractAlgorithm[Any]) -> str:
    return algorithms.description_of(algorithms.name_of(algorithm))


def _algorithms() -> list[str]:
    return [f"  {name:<8}  {algorithms.description_of(name)}" for name in algorithms.names()]


def _dataset_named(arguments: list[str]) -> str | None:
    named = None
    for before, after in zip(["", *arguments], arguments, strict=False):
        if before == "--env":
            named = after
        elif after.startswith("--env="):
            named = after.removeprefix("--env=")
    try:  # of an option that is given twice the last counts
        return None if named is None else EnvironmentName.parse(named).dataset
    except InputError:
        return None  # said where the value is used


def _command(default: AbstractAlgorithm[Any]) -> Command:
    def command(
        out: Path,
        options: TrainOptions,
        budgets: tuple[str, ...] | None = None,
        resume: bool = False,
        algorithm: AbstractAlgorithm[Any] = default,
    ) -> None:
        wanted = servable_budgets(algorithm) if budgets is None else map(Budget.parse, budgets)
        jobs.start(out, algorithm, options.job(wanted), resume=resume)

    return prepared(
        command,
        default,
        f"""Train {type(default).__name__}: {_description(default)}

    Args:
        out: folder of the new run.
        resume: go on if --out holds a run with these very settings.""",
        TrainOptions,
    )
