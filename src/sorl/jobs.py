"""A job: train into a run's folder, evaluate, save, and go on after a kill as if nothing happened.

The order at a milestone is: metrics, checkpoint, policies, evaluation. A job that is killed at any
point therefore loses at most what came after its last checkpoint, and a resumed one makes up for
an evaluation that is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from sorl import algorithms, checkpoint, provenance
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
from sorl.console import Display
from sorl.data.dataset import Dataset
from sorl.data.sources import load_dataset
from sorl.deployment.storage import policy_folder, save_policy
from sorl.errors import InputError
from sorl.evaluation import Evaluator
from sorl.inference import check_budgets
from sorl.interruption import Interruption, StoppedError
from sorl.recorder import Recorder, check_dashboards
from sorl.rollouts import select_member
from sorl.runs import INCIDENTAL, Run, check_same_config
from sorl.training import Snapshot, TrainingState, initial_state, members_of, train
from sorl.types import Budget, Member

# Settings that change how a job runs but none of its results.
_HOW = "execution"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train and when to evaluate it.

    Args:
        environment: OGBench name; None trains on `data` alone, without evaluation.
        data: an `.npz` file; None looks `environment` up, see `sorl.load_dataset`.
        tasks: tasks to train together; None means the one that `environment` names.
        seeds: seeds to train together.
        updates: gradient updates.
        batch_size: rows of one batch.
        log_every: updates between two rows of metrics.csv; also the unit of stopping.
        evaluate_every: updates between two evaluations, a multiple of `log_every`; the last
            update is always evaluated.
        budgets: budgets of every evaluation.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the episodes' starts and of the sampling noise.
        workers: processes that step environments; None means one a core.
        checkpoint_seconds: least time between two checkpoints that no evaluation asks for.
        tensorboard: None means where tensorboardX is installed.
        wandb: send to Weights & Biases too.
    """

    environment: str | None
    data: Path | None = None
    tasks: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    updates: int = 1_000_000
    batch_size: int = 256
    log_every: int = 250
    evaluate_every: int = 100_000
    budgets: tuple[Budget, ...] = (Budget(1, 1), Budget(4, 1), Budget(4, 8))
    episodes: int = 50
    evaluation_seed: int = 0
    workers: int | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        """Check numbers before anything is read or written."""
        for name in ("updates", "batch_size", "log_every", "evaluate_every", "episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not possible: give at least 1.")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers={self.workers} is not possible: give at least 1.")
        if self.evaluate_every % self.log_every:
            raise InputError(
                f"evaluate_every={self.evaluate_every} must be a multiple of log_every="
                f"{self.log_every}, since training pauses at those updates only."
            )
        if self.environment is not None and not self.budgets:
            raise InputError("Name at least one budget to evaluate, for example 4x1.")
        if self.evaluation_seed < 0:
            raise InputError(f"evaluation_seed={self.evaluation_seed} must be 0 or more.")
        if not self.checkpoint_seconds >= 0:
            raise InputError(f"checkpoint_seconds={self.checkpoint_seconds} must be 0 or more.")


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
    known = (out / "config.json").exists()
    if known and not resume:
        Run.create(out, {})  # raises the sentence that says what to do
    dataset = _load(job)
    skeleton = eqx.filter_eval_shape(
        lambda key: algorithm.policy(algorithm.init(dataset.spec, key=key)), jax.random.key(0)
    )
    check_budgets(skeleton, job.budgets)
    members_of(dataset.tasks, job.seeds)
    check_dashboards(tensorboard=job.tensorboard, wandb=job.wandb)
    config = _config(algorithm, job, dataset)
    if known:
        run = Run.open(out)
        check_same_config(run.config, config, ignored=(*INCIDENTAL, _HOW))
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
        settings = {**run.config["training"], **run.config[_HOW]}
        data = run.config["dataset"]["path"]
        job = Job(
            **{
                **settings,
                "environment": run.config["environment"],
                "tasks": tuple(run.config["tasks"]),
                "seeds": tuple(run.config["seeds"]),
                "data": None if data is None else Path(data),
                "budgets": tuple(Budget.parse(text) for text in settings["budgets"]),
            }
        )
        algorithm = algorithms.build(run.config["algorithm"])
        fingerprint = run.config["dataset"]["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{run.path / 'config.json'} lacks or garbles a setting ({error}): restore it from a "
            "copy, or start a new run."
        ) from error
    dataset = _load(job)
    if dataset.fingerprint != fingerprint:
        raise InputError(
            f"The data of {run.path} have changed since it was started "
            f"({data or job.environment} has fingerprint {dataset.fingerprint[:12]}, the run "
            f"{fingerprint[:12]}): restore them, or start a new run."
        )
    _work(run, algorithm, job, dataset, quiet=quiet)
    return run


def _load(job: Job) -> Dataset:
    return load_dataset(job.environment, data=job.data, tasks=job.tasks)


def _config(algorithm: AbstractAlgorithm[Any], job: Job, dataset: Dataset) -> dict[str, Any]:
    return {
        "algorithm": algorithms.describe(algorithm),
        "environment": job.environment,
        "tasks": list(dataset.tasks),
        "seeds": list(job.seeds),
        "training": {
            "updates": job.updates,
            "batch_size": job.batch_size,
            "log_every": job.log_every,
            "evaluate_every": job.evaluate_every,
            "budgets": [str(budget) for budget in job.budgets],
            "episodes": job.episodes,
            "evaluation_seed": job.evaluation_seed,
        },
        _HOW: {
            "workers": job.workers,
            "checkpoint_seconds": job.checkpoint_seconds,
            "tensorboard": job.tensorboard,
            "wandb": job.wandb,
        },
        "dataset": {
            "path": None if job.data is None else str(job.data.expanduser().absolute()),
            "fingerprint": dataset.fingerprint,
            "rows": int(dataset.observations.shape[0]),
        },
        "spec": dataclasses.asdict(dataset.spec),
        **provenance.provenance(),
    }


def _work(
    run: Run,
    algorithm: AbstractAlgorithm[Any],
    job: Job,
    dataset: Dataset,
    *,
    quiet: bool,
) -> None:
    members = members_of(dataset.tasks, job.seeds)
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
        worker = _Worker(run, algorithm, job, members, dataset, recorder, evaluator, display, stop)
        begin = worker.restore()
        display.begin(run.path, members, job.updates, 0 if begin is None else begin[0])
        saved = time.monotonic()
        update = 0 if begin is None else begin[0]
        for snapshot in (
            ()
            if stop.requested
            else train(
                algorithm,
                dataset,
                seeds=job.seeds,
                updates=job.updates,
                batch_size=job.batch_size,
                chunk=job.log_every,
                start=begin,
            )
        ):
            update = snapshot.update
            worker.log(snapshot)
            dead = not np.asarray(snapshot.state.alive).any()
            if worker.is_milestone(update):
                worker.save(update, snapshot.state, milestone=True)
                saved = time.monotonic()
                if not dead:
                    worker.evaluate(update, snapshot.state)
            elif stop.requested or dead or time.monotonic() - saved >= job.checkpoint_seconds:
                worker.save(update, snapshot.state, milestone=False)
                saved = time.monotonic()
            if dead:
                raise InputError(
                    f"Every task and seed of {run.path} was stopped: see events.jsonl there, and "
                    "start a new run with a smaller learning rate or q_loss_coef."
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


class _Worker:
    """What happens around the updates of one job."""

    def __init__(
        self,
        run: Run,
        algorithm: AbstractAlgorithm[Any],
        job: Job,
        members: Sequence[Member],
        dataset: Dataset,
        recorder: Recorder,
        evaluator: Evaluator | None,
        display: Display,
        stop: Interruption,
    ) -> None:
        self._stop = stop
        self._run = run
        self._algorithm = algorithm
        self._job = job
        self._members = members
        self._dataset = dataset
        self._recorder = recorder
        self._evaluator = evaluator
        self._display = display
        self._clock = time.perf_counter()
        self._update = 0

    def restore(self) -> tuple[int, TrainingState] | None:
        """Go back to the newest checkpoint, drop what was recorded after it, make up leeway."""
        if checkpoint.latest(self._run.checkpoints) is None:
            self._run.rewind(0)
            return None
        like = eqx.filter_eval_shape(initial_state, self._algorithm, self._dataset, self._members)
        state, metadata = checkpoint.restore(self._run.checkpoints, like)
        update = int(metadata["update"])
        self._run.rewind(update)
        self._update = update
        if self.is_milestone(update):
            self._release(update, state)  # a kill may have come between checkpoint and policies
            rows = [row for row in self._run.evaluations() if row["update"] == update]
            if len(rows) < len(self._members) * len(self._job.budgets):
                self._run.rewind_evaluations(update - 1)
                self.evaluate(update, state)
        self._clock = time.perf_counter()
        return update, state

    def is_milestone(self, update: int) -> bool:
        """Whether the state after `update` is evaluated and kept for ever."""
        return update % self._job.evaluate_every == 0 or update == self._job.updates

    def log(self, snapshot: Snapshot) -> None:
        """Write the metrics of a chunk, its speed and whom it stopped."""
        rows = [
            {
                "update": snapshot.update,
                "task": member.task,
                "seed": member.seed,
                **{name: float(values[i]) for name, values in snapshot.metrics.items()},
            }
            for i, member in enumerate(self._members)
        ]
        self._run.append_metrics(rows)
        self._recorder.record("metrics", rows)
        now = time.perf_counter()
        seconds, count = now - self._clock, snapshot.update - self._update
        self._clock, self._update = now, snapshot.update
        timing = {
            "update": snapshot.update,
            "seconds": seconds,
            "updates_per_second": count / seconds,
        }
        self._run.append_timing([timing])
        self._recorder.record("timing", [timing])
        for member, sentence in snapshot.stopped.items():
            self._run.append_event(snapshot.update, sentence, task=member.task, seed=member.seed)
            self._display.say(sentence)
        means = {name: _mean(values) for name, values in snapshot.metrics.items()}
        self._display.advance(snapshot.update, count / seconds, means)

    def save(self, update: int, state: TrainingState, *, milestone: bool) -> None:
        """Write a checkpoint, and at a milestone the members' policies."""
        checkpoint.save(self._run.checkpoints, update, state, {}, milestone=milestone)
        if milestone:
            self._release(update, state)

    def _release(self, update: int, state: TrainingState) -> None:
        policies = self._policies(state)
        origin = {
            name: self._run.config[name]
            for name in ("environment", "training", "dataset", "versions", "machine", "created")
        }
        for i, member in enumerate(self._members):
            save_policy(
                policy_folder(self._run.path, member),
                select_member(policies, i),
                algorithm=self._algorithm,
                spec=self._dataset.spec,
                member=member,
                update=update,
                provenance=origin,
            )

    def evaluate(self, update: int, state: TrainingState) -> None:
        """Roll the policies out at every budget and write the scores.

        Asked to stop, it leaves them out: the checkpoint exists, and a resumed job makes them.
        """
        if self._evaluator is None:
            return
        try:
            with self._display.evaluating() as on_progress, self._stop.skippable():
                results = self._evaluator.evaluate(
                    self._policies(state),
                    self._members,
                    budgets=self._job.budgets,
                    episodes=self._job.episodes,
                    seed=self._job.evaluation_seed,
                    on_progress=on_progress,
                )
        except StoppedError:
            return
        rows = [{"update": update, **result.row()} for result in results]
        self._run.append_evaluations(rows)
        self._recorder.record("evaluations", rows)
        self._display.scores(update, results)
        self._clock = time.perf_counter()  # the rate of training does not count evaluation

    def _policies(self, state: TrainingState) -> AbstractPolicy:
        # Members may be spread over devices; one device acts for all of them.
        states = jax.device_put(state.algorithm, jax.devices()[0])
        return eqx.filter_vmap(self._algorithm.policy)(states)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
