"""What a job does when training pauses: write metrics, save, release policies, evaluate."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from sorl import checkpoint, platform
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, in_units
from sorl.console import Display
from sorl.data.dataset import Dataset
from sorl.data.shards import Shards
from sorl.deployment.card import write_card
from sorl.deployment.storage import policy_folder, read_policy, save_policy
from sorl.errors import InputError
from sorl.evaluation import Evaluation, Evaluator
from sorl.interruption import Interruption, StoppedError
from sorl.jobs.beside import BesideTraining
from sorl.jobs.finetuning import FINETUNING, like_of
from sorl.jobs.job import Job, job_of
from sorl.members import Snapshot, TrainingState, copied, members_of
from sorl.off_policy import evaluate_off_policy
from sorl.recorder import Recorder
from sorl.rollouts import select_member
from sorl.runs import Run
from sorl.types import Member
from sorl.units import Units


class Milestones:
    """What happens around the updates of one job.

    The order at a milestone is: metrics, checkpoint, policies, evaluation. A job that is killed at
    any point therefore loses at most what came after its last checkpoint, and a resumed one makes
    up for policies or evaluations that are missing.
    """

    def __init__(
        self,
        run: Run,
        algorithm: AbstractAlgorithm[Any],
        job: Job,
        members: Sequence[Member],
        split: tuple[Dataset | Shards, Dataset | None],
        first: int,
        recorder: Recorder,
        evaluator: Evaluator | None,
        beside: BesideTraining | None,
        display: Display,
        stop: Interruption,
    ) -> None:
        self._stop = stop
        self._run = run
        self._algorithm = algorithm
        self._job = job
        self._members = members
        self._spec = split[0].spec
        self._first = first
        self._units = split[0].units
        self._split = split
        self._recorder = recorder
        self._evaluator = evaluator
        self._beside = beside
        self._display = display
        self._clock = time.perf_counter()
        self._update = first

    def restore(self) -> tuple[int, TrainingState] | None:
        """Go back to the newest checkpoint, drop what was recorded after it, make up leeway.

        Raises:
            InputError: the checkpoints are damaged, or no member is alive any more.
            WorkerError: a worker process died.
        """
        if checkpoint.latest(self._run.checkpoints) is None:
            self._run.rewind(0)
            return None
        with self._stop.unbroken():
            state, metadata = checkpoint.restore(self._run.checkpoints, like_of(self._run.config))
        update = int(metadata["update"])
        self._run.rewind(update)
        self._update = update
        if self.is_milestone(update):
            self._release_missing(update, state)
        alive = bool(np.asarray(state.alive).any())
        self._make_up(update, state if alive else None)
        if not alive:
            raise all_stopped(self._run)
        self._clock = time.perf_counter()
        return update, state

    def _make_up(self, update: int, state: TrainingState | None) -> None:
        """Evaluate the milestones that have not been, up to the restored update.

        There are several where training went on beside an evaluation that a kill ended. The
        restored state itself is not evaluated where it is None.
        """
        if self._job.environment is None:
            # Whatever budgets the job names, the data are asked about the method's own alone.
            rows, budgets = self._run.off_policy(), [str(self._algorithm.own_budget)]
        else:
            rows, budgets = self._run.evaluations(), [str(b) for b in self._job.budgets]
        wanted = {(*member, budget) for member in self._members for budget in budgets}

        def found(milestone: int) -> set[tuple[object, ...]]:
            return {
                (row.get("task"), row.get("seed"), row.get("budget"))
                for row in rows
                if row["update"] == milestone
            }

        every = range(self._first, update + 1, self._job.evaluate_every)
        missing = [
            milestone
            for milestone in dict.fromkeys((*every, update))
            if milestone and self.is_milestone(milestone) and not wanted <= found(milestone)
        ]
        if missing:
            self._run.forget_scores(missing, budgets)
        for milestone in missing:
            if milestone == update:
                if state is not None:
                    self.evaluate(update, state)
                continue
            try:
                like = like_of(self._run.config)
                earlier, _ = checkpoint.restore(self._run.checkpoints, like, milestone)
            except InputError as error:  # training can go on from the newest all the same
                sentence = f"The evaluation of update {milestone:,} is left out: {error}"
                self._run.append_event(milestone, sentence)
                self._display.say(sentence)
                continue
            self.evaluate(milestone, earlier)

    def is_milestone(self, update: int) -> bool:
        """Whether the state after `update` is evaluated and kept for ever.

        The state that fine-tuning begins with is, too.
        """
        since = update - self._first
        return since % self._job.evaluate_every == 0 or update == self._job.updates

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
        with self._stop.unbroken():
            checkpoint.save(self._run.checkpoints, update, state, {}, milestone=milestone)
            if milestone:
                self._release(update, state)

    def _release(self, update: int, state: TrainingState) -> None:
        policies = _policies(self._algorithm, state, self._units)
        names = ("environment", "training", FINETUNING, "dataset", "versions", "machine", "created")
        origin = {name: self._run.config[name] for name in names if name in self._run.config}
        for i, member in enumerate(self._members):
            save_policy(
                policy_folder(self._run.path, member),
                select_member(policies, i),
                algorithm=self._algorithm,
                spec=self._spec,
                member=member,
                update=update,
                provenance=origin,
            )
        self._write_cards()

    def _release_missing(self, update: int, state: TrainingState) -> None:
        """Write the policies of a restored milestone, which a kill may have prevented.

        Those that are there stay, for a calibration may lie beside them.
        """
        if all(_has_policy(self._run.path, member, update) for member in self._members):
            self._write_cards()
        else:
            self._release(update, state)

    def _write_cards(self) -> None:
        scores = self._run.evaluations()
        for member in self._members:
            write_card(policy_folder(self._run.path, member), scores)

    def evaluate(self, update: int, state: TrainingState) -> None:
        """Roll the policies out at every budget and write the scores, or begin to.

        Without an environment, say what the data do. Asked to stop, it leaves them out: the
        checkpoint exists, and a resumed job makes them.
        """
        if self._evaluator is None:
            self._evaluate_off_policy(update, state)
            return
        if self._beside is None:
            policies = _policies(self._algorithm, state, self._units)
            try:
                with self._display.evaluating() as on_progress, self._stop.skippable():
                    results = self._roll_out(policies, on_progress)
            except StoppedError:
                return
            self._write_scores(update, results)
            self._clock = time.perf_counter()  # the rate of training does not count evaluation
            return
        self.collect(wait=True)
        # A copy, and complete: the next chunk overwrites what it is of.
        policies = _policies(self._algorithm, copied(state), self._units, platform.cpu())
        jax.block_until_ready(eqx.filter(policies, eqx.is_array))
        self._beside.start(update, functools.partial(self._roll_out, policies))
        self._clock = time.perf_counter()  # nor waiting for the evaluation before

    def collect(self, *, wait: bool = False) -> None:
        """Write the scores of an evaluation beside training that has ended.

        Args:
            wait: wait for one that runs.

        Raises:
            InputError: it found an action that is not finite.
            WorkerError: a worker process died.
        """
        ended = None if self._beside is None else self._beside.take(wait=wait)
        if ended is not None:
            self._write_scores(*ended)

    def _roll_out(
        self, policies: AbstractPolicy, on_progress: Callable[[int, int], None]
    ) -> list[Evaluation]:
        assert self._evaluator is not None
        return self._evaluator.evaluate(
            policies,
            self._members,
            budgets=self._job.budgets,
            episodes=self._job.episodes,
            seed=self._job.evaluation_seed,
            on_progress=on_progress,
        )

    def _write_scores(self, update: int, results: Sequence[Evaluation]) -> None:
        rows = [{"update": update, **result.row()} for result in results]
        self._run.append_evaluations(rows)
        self._write_cards()
        self._recorder.record("evaluations", rows)
        self._display.scores(update, results)

    def _evaluate_off_policy(self, update: int, state: TrainingState) -> None:
        training, held_out = self._split
        assert isinstance(training, Dataset)  # shards are refused without an environment
        try:
            with self._stop.skippable():
                rows = evaluate_off_policy(
                    self._algorithm,
                    jax.device_put(state.algorithm, jax.devices()[0]),
                    self._members,
                    training,
                    held_out,
                    update=update,
                    batch_size=self._job.batch_size,
                    fitted_q_updates=self._job.fitted_q_updates,
                    seed=self._job.evaluation_seed,
                )
        except StoppedError:
            return
        self._run.append_off_policy(rows)
        self._recorder.record("off_policy", rows)
        self._display.off_policy(update, rows)
        self._clock = time.perf_counter()


def restore_policies(run: Run, update: int) -> tuple[AbstractPolicy, tuple[Member, ...]]:
    """The policies of a run as they were at an earlier milestone.

    Args:
        run: the run.
        update: a milestone: an update that was evaluated, and whose checkpoint is kept for ever.

    Returns:
        The policies, stacked `[members]`, and the members.

    Raises:
        InputError: there is no intact checkpoint of that update.
    """
    _, algorithm, _ = job_of(run.config)
    members = members_of(run.config["tasks"], run.config["seeds"])
    state, _ = checkpoint.restore(run.checkpoints, like_of(run.config), update)
    return _policies(algorithm, state, Units.parse(run.config.get("units"))), members


def _has_policy(run: Path, member: Member, update: int) -> bool:
    try:
        return read_policy(policy_folder(run, member)).update == update
    except InputError:  # missing or damaged
        return False


def _policies(
    algorithm: AbstractAlgorithm[Any],
    state: TrainingState,
    units: Units,
    device: Any = None,
) -> AbstractPolicy:
    # Members may be spread over devices; one device acts for all of them.
    states = jax.device_put(state.algorithm, device or jax.devices()[0])
    return eqx.filter_vmap(lambda one: in_units(algorithm.policy(one), units))(states)


def all_stopped(run: Run) -> InputError:
    """What to say where no member is alive any more."""
    return InputError(
        f"Every task and seed of {run.path} was stopped: see events.jsonl there, and start a new "
        "run with a smaller learning rate or weight of the Q loss."
    )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
