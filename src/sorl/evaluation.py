"""Evaluation at every budget: success, return, length and latency of stacked policies.

The same call gives the same scores, whatever the number of workers and slots and whichever other
members and budgets are evaluated with it; `sorl.rollouts` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import equinox as eqx
import jax

from sorl import inference, platform
from sorl.algorithm import AbstractPolicy
from sorl.encoders import frames_of
from sorl.environments import VectorEnvironment
from sorl.errors import InputError
from sorl.inference import USUAL, Strategy
from sorl.rendering import rollout_frames
from sorl.rollouts import (
    LANES,
    GroupActor,
    environment_id,
    latency,
    run_rollouts,
    select_member,
)
from sorl.types import MAX_SEED, Budget, Member

if TYPE_CHECKING:
    from sorl.data.names import EnvironmentName


__all__ = ["Evaluation", "Evaluator", "Progress", "evaluate", "rollout_frames"]


@dataclass(frozen=True)
class Evaluation:
    """What one member reached at one budget.

    Attributes:
        member: task and seed of the training.
        budget: test-time compute of each decision.
        episodes: number of episodes.
        success: fraction of the episodes in [0, 1] whose last step had `info["success"]`
            (any step in `minari:` and `gym:` environments).
        episode_return: mean undiscounted sum of rewards.
        length: mean number of steps.
        latency_ms: median milliseconds to decide for ONE observation, compiled, host to host, where
            the policy is: beside training on an accelerator, on the processor, which has more to
            do.
        act_ms: mean milliseconds per environment step spent in the batched act in the rollouts.
        candidates: mean number of candidates that a decision was chosen among; the budget's, unless
            spending is adaptive.
        success_told: whether the environment told in any episode if it succeeded; `success` is 0
            where it never does.
    """

    member: Member
    budget: Budget
    episodes: int
    success: float
    episode_return: float
    length: float
    latency_ms: float
    act_ms: float
    candidates: float
    success_told: bool = True

    def row(self) -> dict[str, int | float | str]:
        """The columns of `evaluations.csv`, without `update`; runs are not adaptive."""
        return {
            "task": self.member.task,
            "seed": self.member.seed,
            "budget": str(self.budget),
            "steps": self.budget.steps,
            "best_of": self.budget.best_of,
            "episodes": self.episodes,
            "success": self.success,
            "return": self.episode_return,
            "length": self.length,
            "latency_ms": self.latency_ms,
            "act_ms": self.act_ms,
        }


Progress = Callable[[int, int], None]
"""Called with the number of episodes that are done and the number of all episodes."""


class Evaluator:
    """Owns the worker processes, so that a later evaluation starts neither them nor a compiler.

    A context manager; the workers start at the first `evaluate` and end with the block, or at an
    exception (Ctrl-C too). Compiled programs are kept by JAX as long as the process lives.

    Args:
        environment: an OGBench name, whose task each member replaces by its own; or, for members
            of task 0, any gymnasium id, `module:Name-v0` included, or `minari:NAME` or `gym:ID`
            (see `sorl.own_environments`).
        workers: worker processes; as many as this process has CPU cores if None.
        slots: episodes that run at once; a manipulation environment takes some 140 MB. If None,
            8 for each worker, 16 where there are at least twice as many episodes, and no more
            than there are episodes.
        max_episode_steps: cut episodes off earlier than the environment does.

    Raises:
        InputError: a number is below 1.
    """

    def __init__(
        self,
        environment: EnvironmentName | str,
        *,
        workers: int | None = None,
        slots: int | None = None,
        max_episode_steps: int | None = None,
    ):
        for name, value in (
            ("workers", workers),
            ("slots", slots),
            ("max_episode_steps", max_episode_steps),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is not possible: give at least 1.")
        self._environment = environment
        self._workers = workers
        self._slots = slots
        self._max_episode_steps = max_episode_steps
        self._vector: VectorEnvironment | None = None

    def evaluate(
        self,
        policies: AbstractPolicy,
        members: Sequence[Member],
        *,
        budgets: Iterable[Budget],
        strategy: Strategy = USUAL,
        episodes: int = 50,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> list[Evaluation]:
        """See `evaluate`."""
        budgets = list(dict.fromkeys(budgets))
        _check(policies, members, budgets, strategy, episodes, seed)
        try:
            vector = self._start(members[0].task, episodes * len(members), frames_of(policies))
            return _evaluate(
                vector,
                self._environment,
                policies,
                members,
                budgets,
                strategy,
                episodes,
                seed,
                on_progress,
            )
        except BaseException:
            self.close()  # what the workers still do belongs to an evaluation that is no more
            raise

    def _start(self, task: int, episodes: int, frames: int) -> VectorEnvironment:
        if self._vector is not None and self._vector.frames != frames:
            self.close()
        if self._vector is None:
            workers = self._workers or min(platform.cores(), self._slots or episodes)
            # A second group for each worker keeps it busy while the first is acted for, but its
            # environments take seconds to build: only where every slot gets two episodes.
            groups = 2 if episodes >= 4 * LANES * workers else 1
            slots = self._slots or max(workers, min(episodes, groups * LANES * workers))
            self._vector = VectorEnvironment(
                environment_id(self._environment, task),
                slots=slots,
                workers=workers,
                max_episode_steps=self._max_episode_steps,
                frames=frames,
            )
        return self._vector

    def close(self) -> None:
        """End the workers."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def evaluate(
    policies: AbstractPolicy,
    members: Sequence[Member],
    environment: EnvironmentName | str,
    *,
    budgets: Iterable[Budget],
    strategy: Strategy = USUAL,
    episodes: int = 50,
    workers: int | None = None,
    seed: int = 0,
    slots: int | None = None,
    max_episode_steps: int | None = None,
    on_progress: Progress | None = None,
) -> list[Evaluation]:
    """Roll every member's policy out at every budget.

    Args:
        policies: stacked policies; every array leaf has a leading axis `[members]`.
        members: task and seed of each; the task decides the environment.
        environment: see `Evaluator`.
        budgets: any number of them; each compiles once.
        strategy: how every budget is spent.
        episodes: episodes for each member and budget.
        workers: see `Evaluator`; the scores do not depend on it.
        seed: seed of the starts and of the sampling noise, 0 to `MAX_SEED`.
        slots: see `Evaluator`; the scores do not depend on it.
        max_episode_steps: see `Evaluator`.
        on_progress: called after each episode.

    Returns:
        One `Evaluation` for each member and budget, ordered by member, then by budget.

    Raises:
        InputError: a budget that the policy cannot serve by this strategy (before any worker
            starts), a policy that does not fit the environment, or an environment that cannot be
            used.
        WorkerError: a worker process died.
    """
    with Evaluator(
        environment, workers=workers, slots=slots, max_episode_steps=max_episode_steps
    ) as evaluator:
        return evaluator.evaluate(
            policies,
            members,
            budgets=budgets,
            strategy=strategy,
            episodes=episodes,
            seed=seed,
            on_progress=on_progress,
        )


def _check(
    policies: AbstractPolicy,
    members: Sequence[Member],
    budgets: Sequence[Budget],
    strategy: Strategy,
    episodes: int,
    seed: int,
) -> None:
    if not members or not budgets:
        raise InputError("There is nothing to evaluate: give at least one member and one budget.")
    if episodes < 1 or not 0 <= seed <= MAX_SEED:
        raise InputError(
            f"An evaluation of {episodes} episodes with seed {seed} is not possible: give at least "
            f"1 episode and a seed from 0 to {MAX_SEED}."
        )
    leading = {leaf.shape[:1] for leaf in jax.tree.leaves(eqx.filter(policies, eqx.is_array))}
    if leading - {(len(members),)}:
        raise InputError(
            f"The policies are stacked for {sorted(leading)} members, but {len(members)} are named."
        )
    for budget in budgets:
        inference.check(policies, budget, strategy)


def _evaluate(
    vector: VectorEnvironment,
    environment: EnvironmentName | str,
    policies: AbstractPolicy,
    members: Sequence[Member],
    budgets: Sequence[Budget],
    strategy: Strategy,
    episodes: int,
    seed: int,
    on_progress: Progress | None,
) -> list[Evaluation]:
    singles = [select_member(policies, index) for index in range(len(members))]
    ids = [environment_id(environment, member.task) for member in members]
    sizes = vector.sizes
    done, total = 0, episodes * len(members) * len(budgets)

    def count() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    found: dict[tuple[int, int], Evaluation] = {}
    for place, budget in enumerate(budgets):
        actors = [
            GroupActor(policy, member, budget, seed, strategy)
            for policy, member in zip(singles, members, strict=True)
        ]
        actors[0].prepare(sizes)
        actors[0].check_range(sizes)
        last = run_rollouts(vector, actors, ids, episodes=episodes, on_episode=count)
        milliseconds = latency(singles[0], budget, sizes.observation_size, strategy)
        for index, member in enumerate(members):
            found[index, place] = Evaluation(
                member=member,
                budget=budget,
                episodes=episodes,
                success=float(last[index]["success"].mean()),
                episode_return=float(last[index]["episode_return"].mean()),
                length=float(last[index]["length"].mean()),
                latency_ms=milliseconds,
                act_ms=1000 * actors[index].seconds / actors[index].steps,
                candidates=actors[index].candidates / actors[index].steps,
                success_told=bool(last[index]["success_told"].any()),
            )
    return [found[key] for key in sorted(found)]
