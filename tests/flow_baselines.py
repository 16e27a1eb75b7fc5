"""What the tests of FQL, IFQL, FAWAC and FBRAC share: slow flows, training, draws."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpy_networks as slow
import probes
from one_member import SPEC
from sorl.algorithm import AbstractAlgorithm
from sorl.data.dataset import Dataset
from sorl.inference import act
from sorl.training import train
from sorl.types import Budget, Transition

ROWS = 8
DRAWS = 2000

# Two modes in the plane; what an algorithm does to their shares tells clones from improvers.
MODES = probes.Mixture(np.array([[-0.5, 0.3], [0.5, -0.3]]), np.array([0.7, 0.3]), 0.1)


def noise_of(key: Any) -> np.ndarray:
    """Standard Gaussian noise for `ROWS` actions, as an algorithm draws it from `key`."""
    return np.asarray(jax.random.normal(key, (ROWS, 3)), np.float64)


def slow_flow_action(network: Any, s: np.ndarray, noise: np.ndarray, steps: int) -> np.ndarray:
    """Euler steps of a flow that reads t alone, clipped at the end."""
    x = noise
    for i in range(steps):
        x = x + slow.mlp(network.mlp, np.concatenate([s, x, [i / steps]])) / steps
    return np.clip(x, -1, 1)


def slow_flow_matching_errors(network: Any, batch: Transition, key: Any) -> np.ndarray:
    """Row by row; noise and times are drawn again from the key, all else is written anew."""
    noise_key, time_key = jax.random.split(key)
    noise, times = noise_of(noise_key), np.asarray(jax.random.uniform(time_key, (ROWS,)))
    s, a = np.asarray(batch.observation, np.float64), np.asarray(batch.action, np.float64)
    errors = []
    for i in range(ROWS):
        x = (1 - times[i]) * noise[i] + times[i] * a[i]
        v = slow.mlp(network.mlp, np.concatenate([s[i], x, [times[i]]]))
        errors.append(np.mean((v - (a[i] - noise[i])) ** 2))
    return np.array(errors)


def fresh_state(algorithm: AbstractAlgorithm[Any], seed: int) -> Any:
    """An initial state for `SPEC`."""
    return _init(algorithm, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _init(algorithm: AbstractAlgorithm[Any], key: Any) -> Any:
    return algorithm.init(SPEC, key=key)


def state_with_another_target(algorithm: AbstractAlgorithm[Any]) -> Any:
    """A state whose target critic is another network than its critic."""
    state, other = (fresh_state(algorithm, seed) for seed in (0, 1))
    return eqx.tree_at(lambda s: s.td_critic.target_critic, state, other.td_critic.critic)


@functools.partial(jax.jit, static_argnums=0)
def first_update(
    algorithm: AbstractAlgorithm[Any], state: Any, batch: Transition, key: Any
) -> tuple[Any, Any]:
    """The new state and the metrics."""
    return algorithm.update(state, batch, jnp.int32(0), key=key)


def learn(
    algorithm: AbstractAlgorithm[Any],
    dataset: Dataset,
    *,
    updates: int,
    batch_size: int = 128,
) -> list[Any]:
    """The state of seed 0 on each task of the data, in their order, by the public path."""
    *_, last = train(
        algorithm, dataset, seeds=(0,), updates=updates, batch_size=batch_size, chunk=updates
    )
    assert not last.stopped
    return [
        jax.tree.map(lambda leaf, member=member: leaf[member], last.state.algorithm)
        for member in range(len(last.members))
    ]


@eqx.filter_jit
def _act(policy: Any, observation: Any, keys: Any, budget: Budget) -> Any:
    return jax.vmap(lambda key: act(policy, observation, budget=budget, key=key))(keys)


def draw(policy: Any, steps: int, *, best_of: int = 1, state: int = 0) -> np.ndarray:
    """`DRAWS` actions [DRAWS, action_size] in one state of a probe."""
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return np.asarray(_act(policy, probes.STATES[state], keys, Budget(steps, best_of)))


@eqx.filter_jit
def _score(policy: Any, observation: Any, actions: Any) -> Any:
    return jax.vmap(lambda action: policy.score(observation, action, steps=1))(actions)


def scores(policy: Any, state: int, side: int) -> np.ndarray:
    """What the critic says of 200 left (-1) or right (1) actions in a state of the two steps."""
    actions = probes.sided_actions(np.random.default_rng(1), 200, side)
    return np.asarray(_score(policy, probes.STATES[state], jnp.asarray(actions, jnp.float32)))


def mode_bandit(*rewards: float) -> Dataset:
    """Actions from `MODES`; task i pays `rewards[i]` in the rare mode and nothing in the other."""
    actions = MODES.draw(np.random.default_rng(0), 2 * probes.EPISODES)
    rare = MODES.nearest(actions).astype(float)
    return probes.bandit(actions, np.stack([reward * rare for reward in rewards]))


def assert_finds_the_optimum(algorithm: AbstractAlgorithm[Any], *, steps: int) -> None:
    """Trained on uniform actions, the policy goes where the reward of a bandit is highest."""
    actions = probes.uniform_actions(np.random.default_rng(0))
    dataset = probes.bandit(actions, probes.bandit_reward(actions))
    (state,) = learn(algorithm, dataset, updates=1000)
    off = np.linalg.norm(draw(algorithm.policy(state), steps) - probes.BANDIT_OPTIMUM, axis=1)
    print(off.mean(), np.quantile(off, 0.99))  # 0.9 on average for the behaviour
    assert off.mean() < 0.1
    assert np.quantile(off, 0.99) < 0.25


def assert_solves_two_steps(algorithm: AbstractAlgorithm[Any], *, steps: int) -> None:
    """The critic has the optimal values, and the first step is taken for the second."""
    dataset, values = probes.two_step(np.random.default_rng(0))
    (state,) = learn(algorithm, dataset, updates=1000)
    policy = algorithm.policy(state)
    for (place, side), exact in values.items():
        found = scores(policy, place, side)
        print(place, side, exact, found.mean(), found.std())
        assert abs(found.mean() - exact) < 0.1
    for place in (0, 1):
        right = (draw(policy, steps, state=place)[:, 0] > 0).mean()
        print(place, right)
        assert right > 0.95
