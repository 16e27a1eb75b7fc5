"""What a job does, and how its settings stand in a run's config.json."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sorl import algorithms, provenance
from sorl.algorithm import AbstractAlgorithm
from sorl.arithmetic import Arithmetic, check_arithmetic
from sorl.data.dataset import Dataset
from sorl.data.images import USUAL_IMAGES, ImageSettings
from sorl.data.minari_names import SCHEME
from sorl.data.shards import Shards
from sorl.data.sources import Source, source_of
from sorl.errors import InputError
from sorl.runs import Run
from sorl.types import MAX_SEED, MAX_UPDATES, Budget
from sorl.units import USUAL

EXECUTION = "execution"
"""Settings that change how a job runs but none of its results stand under this name."""

IMAGES = "images"
"""How images are read stands under this name, where there are any."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train and when to evaluate it: `sorl.jobs.start` does it, `sorl.jobs.resume` goes on.

    Args:
        environment: OGBench name, `minari:NAME` or `gym:ID`; None trains on `data` alone, with
            off-policy evaluation.
        data: an `.npz` file, `minari:NAME`, or several of them with weights such as `a.npz:0.7`; or
            a folder of shards, which are streamed from the disk and need an environment; None
            looks `environment` up, see `sorl.load_dataset`.
        tasks: tasks to train together; None means the one that `environment` names.
        seeds: seeds to train together.
        updates: gradient updates, at least 1, like every count here.
        batch_size: rows of one batch.
        arithmetic: in which numbers networks are multiplied in training, see `sorl.arithmetic`.
        log_every: updates between two rows of metrics.csv; also the unit of stopping.
        evaluate_every: updates between two evaluations, a multiple of `log_every`; the last
            update is always evaluated.
        budgets: budgets of every evaluation.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the episodes' starts and of the sampling noise, 0 to 2^32 - 1;
            without an environment, of which episodes are held out.
        workers: processes that step environments; None means one a core.
        held_out: without an environment, the share of the episodes that are not learnt from but
            kept for off-policy evaluation, rounded down; from 0 to below 1.
        fitted_q_updates: without an environment, updates of fitted Q evaluation; 0 leaves it out.
        batch_devices: devices that share the rows of every batch, see `sorl.train`.
        evaluate_beside: roll policies out on the CPU while training goes on; None means where it
            is not the CPU that trains. Latencies are then those of a CPU that has other work.
        checkpoint_seconds: least time between two checkpoints that no evaluation asks for, 0 or
            more.
        tensorboard: None means where tensorboardX is installed.
        wandb: send to Weights & Biases too.
        images: how images are read, where observations hold any.

    Raises:
        InputError: a number is out of its range or a task or seed is not whole, `evaluate_every` is
            no multiple of `log_every`, `batch_devices` no divisor of `batch_size`, or there is an
            environment but no budget to evaluate.
    """

    environment: str | None
    data: Source | tuple[Source, ...] | None = None
    tasks: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    updates: int = 1_000_000
    batch_size: int = 256
    arithmetic: Arithmetic = "float32"
    log_every: int = 250
    evaluate_every: int = 100_000
    budgets: tuple[Budget, ...] = (Budget(1, 1), Budget(4, 1), Budget(4, 8))
    episodes: int = 50
    evaluation_seed: int = 0
    workers: int | None = None
    held_out: float = 0.1
    fitted_q_updates: int = 5000
    batch_devices: int = 1
    evaluate_beside: bool | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool | None = None
    wandb: bool = False
    images: ImageSettings = USUAL_IMAGES

    def __post_init__(self) -> None:
        """Check numbers before anything is read or written."""
        for name in ("tasks", "seeds"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, _plain(name, values))
        for name in (
            "updates",
            "batch_size",
            "batch_devices",
            "log_every",
            "evaluate_every",
            "episodes",
        ):
            if not 1 <= getattr(self, name) <= MAX_UPDATES:
                raise InputError(
                    f"{name}={getattr(self, name)} is not possible: give at least 1, and at most "
                    f"{MAX_UPDATES}."
                )
        if self.batch_size % self.batch_devices:
            raise InputError(
                f"Batches of {self.batch_size} rows cannot be shared by batch_devices="
                f"{self.batch_devices} equally: choose a divisor."
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers={self.workers} is not possible: give at least 1.")
        check_arithmetic(self.arithmetic)
        if self.evaluate_every % self.log_every:
            raise InputError(
                f"evaluate_every={self.evaluate_every} must be a multiple of log_every="
                f"{self.log_every}, since training pauses at those updates only."
            )
        if self.environment is not None and not self.budgets:
            raise InputError("Name at least one budget to evaluate, for example 4x1.")
        if not 0 <= self.evaluation_seed <= MAX_SEED:
            raise InputError(f"evaluation_seed={self.evaluation_seed} must be 0 to {MAX_SEED}.")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out={self.held_out} is not possible: use 0 to below 1.")
        if self.fitted_q_updates < 0:
            raise InputError(f"fitted_q_updates={self.fitted_q_updates} must be 0 or more.")
        if not self.checkpoint_seconds >= 0:
            raise InputError(f"checkpoint_seconds={self.checkpoint_seconds} must be 0 or more.")


def config_of(
    algorithm: AbstractAlgorithm[Any], job: Job, dataset: Dataset | Shards
) -> dict[str, Any]:
    """Every setting of a run, as its config.json holds it."""
    return {
        **settings_of(algorithm, job),
        **({} if dataset.images is None else {IMAGES: dataclasses.asdict(job.images)}),
        "tasks": list(dataset.tasks),
        EXECUTION: {
            "workers": job.workers,
            "batch_devices": job.batch_devices,
            "evaluate_beside": job.evaluate_beside,
            "checkpoint_seconds": job.checkpoint_seconds,
            "tensorboard": job.tensorboard,
            "wandb": job.wandb,
        },
        "dataset": {
            "path": paths(job.data),
            "fingerprint": dataset.fingerprint,
            "rows": dataset.rows,
        },
        "spec": dataset.spec.describe(),
        **({} if dataset.units == USUAL else {"units": dataset.units.describe()}),
        **provenance.provenance(),
    }


def settings_of(algorithm: AbstractAlgorithm[Any], job: Job) -> dict[str, Any]:
    """The settings that decide a run's results and are known before its data, as in config.json."""
    return {
        "algorithm": algorithms.describe(algorithm),
        "environment": job.environment,
        "seeds": list(job.seeds),
        "training": {
            "updates": job.updates,
            "batch_size": job.batch_size,
            # Runs in float32 are named as they always were.
            **({} if job.arithmetic == "float32" else {"arithmetic": job.arithmetic}),
            "log_every": job.log_every,
            "evaluate_every": job.evaluate_every,
            "budgets": [str(budget) for budget in job.budgets],
            "episodes": job.episodes,
            "evaluation_seed": job.evaluation_seed,
            **(_off_policy(job) if job.environment is None else {}),
        },
        # What differs from the default must be told apart before the data are known.
        **({} if job.images == USUAL_IMAGES else {IMAGES: dataclasses.asdict(job.images)}),
    }


def job_of(config: Mapping[str, Any]) -> tuple[Job, AbstractAlgorithm[Any], str]:
    """The job, the algorithm and the data's fingerprint that a run's config describes.

    Raises:
        InputError: a setting is missing or makes no sense.
    """
    try:
        # Runs of earlier versions held nothing out.
        settings = {"held_out": 0.0, **config["training"], **config[EXECUTION]}
        data = config["dataset"]["path"]
        job = Job(
            **{
                **settings,
                "environment": config["environment"],
                "tasks": _whole_numbers(config["tasks"]),
                "seeds": _whole_numbers(config["seeds"]),
                "data": sources(data),
                "budgets": tuple(Budget.parse(text) for text in settings["budgets"]),
                "images": ImageSettings(**config.get(IMAGES, {})),
            }
        )
        return job, algorithms.build(config["algorithm"]), config["dataset"]["fingerprint"]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a setting is missing or garbled ({error})") from error


def settings_in(run: Run) -> tuple[Job, AbstractAlgorithm[Any], str]:
    """The same of a run on disk.

    Raises:
        InputError: the sentence names the file.
    """
    try:
        return job_of(run.config)
    except InputError as error:
        raise InputError(
            f"{run.path / 'config.json'} cannot be used: {error}; restore it from a copy, or start "
            "a new run."
        ) from error


def check_fingerprint(
    run: Run, source: object, dataset: Dataset | Shards, fingerprint: str
) -> None:
    """Raise `InputError` unless data have the fingerprint that a run was started with."""
    if dataset.fingerprint != fingerprint:
        raise InputError(
            f"The data of {run.path} have changed since it was started "
            f"({source} has fingerprint {dataset.fingerprint[:12]}, the run "
            f"{fingerprint[:12]}): restore them, or start a new run."
        )


def _off_policy(job: Job) -> dict[str, Any]:
    return {"held_out": job.held_out, "fitted_q_updates": job.fitted_q_updates}


def paths(data: Source | tuple[Source, ...] | None) -> str | list[str] | None:
    """Absolute paths, so that the run can be resumed from any folder; names as they are."""
    if isinstance(data, tuple):
        return [str(paths(source)) for source in data]
    if data is None or str(data).startswith(SCHEME):
        return data if data is None else str(data)
    return str(Path(data).expanduser().absolute())


def sources(path: str | list[str] | None) -> Source | tuple[Source, ...] | None:
    """The inverse of `_paths`."""
    if isinstance(path, list):
        return tuple(map(source_of, path))
    return None if path is None else source_of(path)


def _plain(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Python's own whole numbers, which JSON can hold, of NumPy's too."""
    try:
        return tuple(int(operator.index(value)) for value in values)
    except TypeError as error:
        raise InputError(
            f"{name}={values!r} is not possible: give whole numbers, such as (0, 1)."
        ) from error


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{values!r} should be a list of whole numbers")
    return tuple(values)
