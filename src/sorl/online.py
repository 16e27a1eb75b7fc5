"""Learning while acting: rounds of a step in every environment and the updates that follow it.

All members act in one call and learn in another one, in which their new rows are also stored; no
shape ever changes, so each compiles once. Like everything random in a member, the noise of its
actions derives from its own key and from how many steps it has made, so a training that goes on
from a checkpoint equals one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from sorl import inference
from sorl.algorithm import AbstractAlgorithm
from sorl.collection import Collector, Ended, Episodes
from sorl.data.dataset import Dataset
from sorl.data.replay import Replay, Rows, sample_both
from sorl.errors import InputError
from sorl.members import (
    Snapshot,
    TrainingState,
    copied,
    lay_out,
    on_every_device,
    run_updates,
    settled,
    snapshot_of,
)
from sorl.types import Budget, Member, Transition

_ACTING = np.uint32(2**32 - 1)  # no number of an update


class Online(NamedTuple):
    """What `TrainingState.online` holds.

    Attributes:
        replay: the rows made so far.
        episodes: the running episodes.
    """

    replay: Replay
    episodes: Episodes


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to learn online.

    Args:
        steps: steps of every member in its environments, all together.
        budget: test-time compute of the acting.
        environments: environments of every member; a round is a step in each of them.
        updates_per_step: updates for each step; those of a round follow it together.
        start_steps: steps before the first update.
        offline_share: None draws batches uniformly from the logged rows and the member's own; a
            number in [0, 1] is the probability of each row of a batch to be a logged one.
        noise: standard deviation of normal noise that is added to actions in [-1, 1], which are
            then clipped; methods whose policy does not draw explore in no other way.

    Raises:
        InputError: a number is out of range, or `environments` does not divide the steps.
    """

    steps: int
    budget: Budget
    environments: int = 1
    updates_per_step: int = 1
    start_steps: int = 0
    offline_share: float | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "environments", "updates_per_step"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not possible: give at least 1.")
        for name in ("steps", "start_steps"):
            if getattr(self, name) % self.environments:
                raise InputError(
                    f"{name}={getattr(self, name)} must be a multiple of "
                    f"environments={self.environments}, since all of them step together."
                )
        if not 0 <= self.start_steps < self.steps:
            raise InputError(
                f"start_steps={self.start_steps} is not possible: give 0 or more, and fewer than "
                f"the {self.steps} steps, since learning begins after them."
            )
        if self.offline_share is not None and not 0 <= self.offline_share <= 1:
            raise InputError(f"offline_share={self.offline_share} is not possible: use 0 to 1.")
        if not 0 <= self.noise < math.inf:
            raise InputError(f"noise={self.noise} is not possible: give a number, 0 or more.")

    @property
    def updates(self) -> int:
        """How many updates there will be."""
        return (self.steps - self.start_steps) * self.updates_per_step

    def steps_at(self, updates: int) -> int:
        """How many steps have been made after so many updates, a whole number of rounds."""
        return self.start_steps + updates // self.updates_per_step if updates else 0


def learn_online(
    algorithm: AbstractAlgorithm[Any],
    dataset: Dataset,
    collector: Collector,
    plan: Plan,
    *,
    members: Sequence[Member],
    first: int,
    start: tuple[int, TrainingState],
    batch_size: int,
    chunk: int,
    acted: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Snapshot]:
    """Act and learn; yield a snapshot after every `chunk` updates and after the last.

    Metrics are those of training, and of the episodes that ended since the last snapshot
    `online/episodes`, `online/return`, `online/success` and `online/length`, the last three NaN
    where there were none. A member whose metrics become infinite or NaN, or whose critic explodes,
    goes back to its state at the last snapshot and stays there; the others go on.

    Args:
        algorithm: the learning rule.
        dataset: the logged rows, with the tasks of all members.
        collector: the environments, in the state of `start`.
        plan: how to learn.
        members: tasks and seeds, in the order of every leading axis.
        first: updates done before the first step.
        start: updates done, and the state after them with its `Online`.
        batch_size: rows of one batch.
        chunk: updates between two snapshots, a multiple of those of a round.
        acted: steps that these members made in runs before, whose noise is not drawn again.
        stopping: whether to give up before the first update. The state is then that of `start`.
    """
    # The rows made so far belong to the members, too, and must not be copied at every step.
    layout = lay_out(members, dataset.tasks, dataset.largest_rewards, equal=True)
    dataset = jax.device_put(dataset, layout.everywhere)
    update, state = start
    online: Online = state.online
    state = jax.device_put(
        TrainingState(state.algorithm, jnp.asarray(state.alive)), layout.over_members
    )
    replay = jax.device_put(online.replay, layout.over_members)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    acting_keys = jax.device_put(fold(layout.keys, _ACTING), layout.over_members)
    steps = plan.steps_at(update - first)
    count = plan.environments * plan.updates_per_step
    alive_before, before = np.asarray(state.alive), copied(state)
    gathered: list[dict[str, Array]] = []
    while steps < plan.steps:
        learns = steps >= plan.start_steps
        if not learns and stopping():
            return
        actions = _act(
            algorithm,
            plan,
            layout.mesh,
            state.algorithm,
            collector.observations,
            acting_keys,
            jnp.int32(acted + steps),
        )
        rows = collector.step(np.asarray(actions))
        size = jnp.int32(steps)
        steps += plan.environments
        if not learns:
            replay = _insert(replay, rows, size)
            continue
        state, replay, metrics = _learn(
            algorithm,
            plan,
            batch_size,
            layout.mesh,
            state,
            replay,
            rows,
            size,
            dataset,
            layout.task_index,
            layout.keys,
            jnp.int32(update),
            jnp.int32(count),
            layout.limits,
        )
        update += count
        gathered.append(metrics)
        if (update - first) % chunk and steps < plan.steps:
            continue
        state = settled(before, state)
        whole = state._replace(online=Online(replay, collector.episodes))
        done = len(gathered) * count
        snapshot = snapshot_of(members, whole, update, done, _means(gathered), alive_before)
        of_episodes = _of_episodes(collector.take_ended(), len(members))
        yield dataclasses.replace(snapshot, metrics={**snapshot.metrics, **of_episodes})
        alive_before, before, gathered = np.asarray(state.alive), copied(state), []


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _act(
    algorithm: AbstractAlgorithm[Any],
    plan: Plan,
    mesh: Mesh,
    states: PyTree,
    observations: Float[Array, "members environments observation_size"],
    keys: Key[Array, " members"],
    steps: Int[Array, ""],
) -> Float[Array, "members environments action_size"]:
    """An action in [-1, 1] for every environment, from what networks see in it."""

    def act_in(policy: Any, key: PRNGKeyArray, observation: Array, number: Array) -> Array:
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
        action = inference.act(policy, observation, budget=plan.budget, key=draw_key)
        # Such a policy has diverged; its member is stopped at the next snapshot.
        action = jnp.where(jnp.isfinite(action), action, 0)
        if plan.noise == 0:
            return action
        noise = plan.noise * jax.random.normal(noise_key, action.shape)
        return jnp.clip(action + noise, -1, 1)

    def act_member(state: PyTree, seen: Array, key: PRNGKeyArray, steps: Array) -> Array:
        policy = algorithm.policy(state)
        numbers = jnp.arange(plan.environments, dtype=jnp.uint32)
        act_all = jax.vmap(functools.partial(act_in, policy, jax.random.fold_in(key, steps)))
        return act_all(seen, numbers)

    act_all = jax.vmap(act_member, in_axes=(0, 0, 0, None))
    return on_every_device(act_all, mesh, shared=(3,))(states, observations, keys, steps)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(replay: Replay, rows: Rows, size: Int[Array, ""]) -> Replay:
    return replay.insert(rows, size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5))
def _learn(
    algorithm: AbstractAlgorithm[Any],
    plan: Plan,
    batch_size: int,
    mesh: Mesh,
    state: TrainingState,
    replay: Replay,
    rows: Rows,
    size: Int[Array, ""],
    dataset: Dataset,
    task_index: Int[Array, " members"],
    keys: Key[Array, " members"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    limits: Float[Array, " members"],
) -> tuple[TrainingState, Replay, dict[str, Float[Array, " members"]]]:
    """Store the rows of a round and make its updates."""

    def local(
        state: TrainingState,
        replay: Replay,
        rows: Rows,
        size: Array,
        dataset: Dataset,
        task_index: Array,
        keys: Array,
        start: Array,
        count: Array,
        limits: Array,
    ) -> tuple[TrainingState, Replay, dict[str, Array]]:
        replay = replay.insert(rows, size)
        size = size + plan.environments

        def draw(key: PRNGKeyArray, source: tuple[Array, Replay], update: Array) -> Transition:
            index, own = source
            return sample_both(
                dataset,
                own,
                key,
                task_index=index,
                size=size,
                batch_size=batch_size,
                offline_share=plan.offline_share,
            )

        sources = (task_index, replay)
        state, sums = run_updates(
            algorithm, draw, state, sources, keys, start, count, limits, few=True
        )
        return state, replay, {name: value / count for name, value in sums.items()}

    return on_every_device(local, mesh, shared=(3, 4, 7, 8))(
        state, replay, rows, size, dataset, task_index, keys, start, count, limits
    )


def _means(gathered: Sequence[dict[str, Array]]) -> dict[str, np.ndarray]:
    """Means over rounds."""
    rounds = {name: np.stack([metrics[name] for metrics in gathered]) for name in gathered[0]}
    return {name: np.asarray(values.mean(axis=0)) for name, values in rounds.items()}


def _of_episodes(ended: Sequence[Ended], members: int) -> dict[str, np.ndarray]:
    """Means over the episodes of each member."""
    columns = {"return": "episode_return", "success": "success", "length": "length"}
    found = {f"online/{name}": np.full(members, np.nan, np.float32) for name in columns}
    count = np.bincount([episode.member for episode in ended], minlength=members)
    for member in np.flatnonzero(count):
        own = [episode for episode in ended if episode.member == member]
        for name, field in columns.items():
            found[f"online/{name}"][member] = np.mean([getattr(one, field) for one in own])
    return {"online/episodes": count.astype(np.float32), **found}
