"""What can be said of policies without an environment, from logged data alone.

    held_out/<metric>       the training's own metrics, on batches of episodes it never saw
    held_out/action_error   mean |π(s) - a| of action entries in [-1, 1], at the method's own budget
    held_out/q_data         the policy's own critic at the logged actions
    held_out/q_policy       the same at the policy's actions
    training/...            the last three on episodes it learnt from
    fitted_q/policy         discounted return of the policy by fitted Q evaluation (`sorl.fitted_q`)
    fitted_q/data           the same estimate of whoever made the log, left out where less than half
                            of the log tells what was done next: it should come near to
    return/data             the mean discounted return of the episodes in question

None of this is a score; the report (`sorl.report.off_policy`) tells what each can and cannot say.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from sorl import inference
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, AbstractScoredPolicy
from sorl.data.dataset import Dataset
from sorl.fitted_q import Evidence, fitted_q
from sorl.types import Member

ROWS = 10_000
"""Most transitions that fitted Q evaluation learns from, drawn from the training episodes."""
SMALL = 2_000
"""Most transitions at which actions and values are compared."""
STARTS = 200
"""Most starts of episodes."""
LEAST_KNOWN = 0.5
"""Least share of the rows whose next action has to be logged for `fitted_q/data`."""
BATCHES = 20
"""Batches whose metrics are averaged."""
OTHER_DISCOUNT = 0.99
"""For methods that have no discount, such as imitation."""


def evaluate_off_policy(
    algorithm: AbstractAlgorithm[Any],
    states: PyTree,
    members: Sequence[Member],
    training: Dataset,
    held_out: Dataset | None,
    *,
    update: int,
    batch_size: int,
    fitted_q_updates: int,
    seed: int,
) -> list[dict[str, float | int | str]]:
    """Rows of `off_policy.csv`, one for each member.

    Args:
        algorithm: the learning rule.
        states: its states, stacked `[members]`.
        members: task and seed of each.
        training: the episodes that were learnt from.
        held_out: the others, of the same data set; None if there are none.
        update: updates of training done.
        batch_size: rows of a batch.
        fitted_q_updates: updates of fitted Q evaluation; 0 leaves it out.
        seed: seed of everything random here.
    """
    policies = eqx.filter_vmap(algorithm.policy)(states)  # between networks, without units
    keys = jax.random.split(jax.random.key(seed), 4)
    random = np.random.default_rng(seed)
    places = np.array([training.tasks.index(member.task) for member in members])
    held_episodes = 0 if held_out is None else len(held_out.starts)
    rows: list[dict[str, float | int | str]] = [
        {
            "update": update,
            "task": member.task,
            "seed": member.seed,
            "budget": str(algorithm.own_budget),
            "held_out_episodes": held_episodes,
        }
        for member in members
    ]

    def add(columns: dict[str, np.ndarray]) -> None:
        for name, values in columns.items():
            for row, value in zip(rows, np.asarray(values), strict=True):
                row[name] = float(value)

    if held_out is not None:
        found = _losses(
            algorithm, batch_size, states, held_out, jnp.asarray(places), jnp.int32(update), keys[0]
        )
        add({f"held_out/{name}": np.asarray(values) for name, values in found.items()})
    for name, dataset in (("held_out", held_out), ("training", training)):
        if dataset is not None:
            drawn = dataset.valid_rows[_some(random, len(dataset.valid_rows), SMALL)]
            add(_compared(algorithm, policies, dataset, drawn, name, keys[1]))
    if fitted_q_updates:
        asked = training if held_out is None else held_out
        drawn = training.valid_rows[_some(random, len(training.valid_rows), ROWS)]
        starts = asked.starts[_some(random, len(asked.starts), STARTS)]
        add(
            _estimates(
                algorithm, policies, training, places, drawn, starts, fitted_q_updates, keys[2:]
            )
        )
    return rows


def _some(random: np.random.Generator, count: int, most: int) -> np.ndarray:
    return np.sort(random.permutation(count)[:most])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(
    algorithm: AbstractAlgorithm[Any],
    batch_size: int,
    states: PyTree,
    dataset: Dataset,
    task_index: Int[Array, " members"],
    update: Int[Array, ""],
    key: PRNGKeyArray,
) -> dict[str, Float[Array, " members"]]:
    """Mean metrics of updates that are computed and thrown away.

    Between two steps of a network that moves only at every `policy_delay`-th update, its metrics
    are those of a batch of the training, so only updates are computed at which everything moves.
    """
    delay = getattr(algorithm, "policy_delay", 1)

    def one(state: PyTree, task: Int[Array, ""], k: PRNGKeyArray, i: Int[Array, ""]) -> dict:
        sample_key, update_key = jax.random.split(k)
        batch = dataset.sample(sample_key, task, batch_size)
        index = (update // delay + i) * delay
        return dict(algorithm.update(state, batch, index, key=update_key)[1])

    def batch(i: Int[Array, ""]) -> dict:
        over_members = jax.vmap(one, in_axes=(0, 0, None, None))
        return over_members(states, task_index, jax.random.fold_in(key, i), i)

    found = jax.lax.map(batch, jnp.arange(BATCHES))
    return {
        name: values.mean(axis=0)
        for name, values in found.items()
        if not name.endswith("gradient_norm")
    }


def _act(
    algorithm: AbstractAlgorithm[Any],
    policies: AbstractPolicy,
    observations: Float[Array, "rows observation_size"],
    key: PRNGKeyArray,
) -> Float[Array, "members rows action_size"]:
    """An action of every member for every observation, at the method's own budget."""
    keys = jax.random.split(key, len(observations))
    return _act_rows(policies, observations, keys, algorithm.own_budget)


@eqx.filter_jit
def _act_rows(
    policies: AbstractPolicy,
    observations: Float[Array, "rows observation_size"],
    keys: Key[Array, " rows"],
    budget: Any,
) -> Float[Array, "members rows action_size"]:
    def one(policy: AbstractPolicy) -> Array:
        def row(given: tuple[Array, PRNGKeyArray]) -> Array:
            return inference.act(policy, given[0], budget=budget, key=given[1])

        # Some at a time: methods with many candidates would need gigabytes for all.
        return jax.lax.map(row, (observations, keys), batch_size=256)

    return eqx.filter_vmap(one)(policies)


def _compared(
    algorithm: AbstractAlgorithm[Any],
    policies: AbstractPolicy,
    dataset: Dataset,
    drawn: Int[Array, " rows"],
    name: str,
    key: PRNGKeyArray,
) -> dict[str, np.ndarray]:
    observations, logged = dataset.observed(drawn), dataset.actions[drawn]
    acted = _act(algorithm, policies, observations, key)
    found = {f"{name}/action_error": np.abs(acted - logged[None]).mean(axis=(1, 2))}
    if isinstance(policies, AbstractScoredPolicy):
        steps = algorithm.own_budget.steps
        at_logged = jnp.broadcast_to(logged, acted.shape)
        for what, actions in (("q_data", at_logged), ("q_policy", acted)):
            found[f"{name}/{what}"] = np.asarray(_value(policies, observations, actions, steps))
    return found


@eqx.filter_jit
def _value(
    policies: AbstractScoredPolicy,
    observations: Float[Array, "rows observation_size"],
    actions: Float[Array, "members rows action_size"],
    steps: int,
) -> Float[Array, " members"]:
    """Mean score of the actions by each member's own critic."""

    def one(policy: AbstractScoredPolicy, acted: Array) -> Array:
        return jax.vmap(lambda s, a: policy.score(s, a, steps=steps))(observations, acted).mean()

    return eqx.filter_vmap(one)(policies, actions)


def _estimates(
    algorithm: AbstractAlgorithm[Any],
    policies: AbstractPolicy,
    training: Dataset,
    places: np.ndarray,
    drawn: Int[Array, " rows"],
    starts: np.ndarray,
    updates: int,
    keys: Key[Array, " 2"],
) -> dict[str, np.ndarray]:
    # A method without values, such as imitation, has no discount of its own.
    discount = float(getattr(algorithm, "discount", OTHER_DISCOUNT))
    tasks = len(training.tasks)
    begin = training.observations[starts]
    after = training.observations[drawn + 1]
    together = _act(algorithm, policies, jnp.concatenate([after, begin]), keys[0])
    logged_after, logged_begin = (
        jnp.broadcast_to(training.actions[rows], (tasks, *training.actions[rows].shape))
        for rows in (drawn + 1, starts)
    )
    # Behind the members one entry for each task: whoever made the log.
    task_of = np.append(places, np.arange(tasks))
    masks = training.masks[task_of][:, drawn].astype(jnp.float32)
    known = jnp.broadcast_to(~training.ends[drawn + 1], masks.shape)
    usable = (known | (masks == 0)).at[: len(places)].set(True)
    returns = [_returns_to_go(training, place, discount) for place in range(tasks)]
    largest = np.array([max(np.abs(found).max(), 1e-6) for found in returns], np.float32)
    evidence = Evidence(
        observations=training.observations[drawn],
        actions=training.actions[drawn],
        next_observations=after,
        rewards=training.rewards[task_of][:, drawn],
        masks=masks,
        next_actions=jnp.concatenate([together[:, : len(drawn)], logged_after]),
        usable=usable,
        scale=jnp.asarray(largest[task_of]),
        starts=begin,
        start_actions=jnp.concatenate([together[:, len(drawn) :], logged_begin]),
    )
    found = np.asarray(fitted_q(evidence, discount=discount, updates=updates, key=keys[1]))
    estimates = {
        "fitted_q/policy": found[: len(places)],
        "return/data": np.array([found[starts].mean() for found in returns])[places],
    }
    # Of transitions in no order nobody knows what the log did next, so nothing would be learnt.
    if usable[len(places) :].mean() >= LEAST_KNOWN:
        estimates["fitted_q/data"] = found[len(places) :][places]
    return estimates


def _returns_to_go(dataset: Dataset, place: int, discount: float) -> np.ndarray:
    """Discounted sum of the rewards of each row and those behind it, as far as the log goes.

    Nothing counts behind a termination, as in the values.
    """
    rewards = np.asarray(dataset.rewards[place], np.float64)
    ends = np.asarray(dataset.ends)
    goes_on = discount * np.asarray(dataset.masks[place])
    returns = np.zeros(len(rewards))
    for row in range(len(rewards) - 2, -1, -1):
        if not ends[row]:
            returns[row] = rewards[row] + goes_on[row] * returns[row + 1]
    return returns
