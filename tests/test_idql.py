"""IDQL: the behaviour's loss against NumPy, modes and weights recovered, the best of many draws."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
import one_member
import probes
from sorl import implicit_q
from sorl.algorithms.idql import IDQL, IDQLPolicy
from sorl.errors import InputError
from sorl.inference import act
from sorl.optim import adam
from sorl.types import Budget

ROWS = 12


def tiny(**fields) -> tuple:
    """A small IDQL, a state whose target critic differs from its critic, and a batch."""
    algorithm = IDQL(**{"hidden": (16, 16), "learning_rate": 1e-3, "discount": 0.9, **fields})
    return algorithm, _state(), one_member.batch_of(np.random.default_rng(0), ROWS)


@functools.cache
def _state() -> Any:
    init = jax.jit(lambda key: IDQL(hidden=(16, 16)).init(one_member.SPEC, key=key))
    state, other = init(jax.random.key(0)), init(jax.random.key(1))
    return eqx.tree_at(lambda s: s.implicit_q.target_critic, state, other.implicit_q.target_critic)


@pytest.mark.parametrize("diffusion_steps", [1, 10])
def test_behaviour_loss_equals_numpy(diffusion_steps):
    """Times and noise are drawn again from the same keys; the schedule is the discrete one."""
    idql, state, batch = tiny(diffusion_steps=diffusion_steps)
    key = jax.random.key(5)
    time_key, noise_key = jax.random.split(key)
    index = np.asarray(jax.random.randint(time_key, (ROWS,), 1, diffusion_steps + 1))
    noise = np.asarray(jax.random.normal(noise_key, (ROWS, 3)), np.float64)
    i = np.arange(1, diffusion_steps + 1)
    rates = 1 - np.exp(-0.1 / diffusion_steps - 9.9 * (2 * i - 1) / (2 * diffusion_steps**2))
    kept = np.cumprod(1 - rates)[index - 1]
    s, a = one_member.float64(batch)[:2]
    errors = []
    for row in range(ROWS):
        x = np.sqrt(kept[row]) * a[row] + np.sqrt(1 - kept[row]) * noise[row]
        answer = slow.mlp(
            state.actor.mlp, np.concatenate([s[row], x, [index[row] / diffusion_steps]])
        )
        errors.append(np.mean((answer - noise[row]) ** 2))
    found = jax.jit(lambda actor: idql.behaviour_loss(actor, batch, key=key))(state.actor)
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-3)


def test_update_is_one_of_the_critic_and_one_adam_step_of_the_actor():
    idql, state, batch = tiny()
    key = jax.random.key(1)
    new, metrics = jax.jit(lambda s: idql.update(s, batch, jnp.int32(0), key=key))(state)
    critic, critic_metrics = jax.jit(
        lambda s: implicit_q.update(
            s,
            batch,
            adam(1e-3, max_gradient_norm=None),
            discount=0.9,
            expectile=0.9,
            target_rate=0.005,
        )
    )(state.implicit_q)
    one_member.assert_same(new.implicit_q, critic, atol=1e-6)
    for name, value in critic_metrics.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4)

    actor, loss, norm = one_member.first_adam_step(
        lambda actor: idql.behaviour_loss(actor, batch, key=key), state.actor, learning_rate=1e-3
    )
    one_member.assert_same(new.actor, actor, atol=1e-5)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-3)


def test_the_actor_clones_whatever_the_rewards_and_the_critic_learns_whatever_the_actor():
    idql, state, batch = tiny()

    @jax.jit
    def update(state, reward):
        return idql.update(
            state, batch._replace(reward=reward), jnp.int32(0), key=jax.random.key(1)
        )[0]

    new = update(state, batch.reward)
    rewarded = update(state, batch.reward + 9)
    assert one_member.same(rewarded.actor, new.actor)
    assert not one_member.same(rewarded.implicit_q, new.implicit_q)
    other = jax.tree.map(lambda leaf: leaf + 0.1, state.actor)
    swapped = update(eqx.tree_at(lambda s: s.actor, state, other), batch.reward)
    assert one_member.same(swapped.implicit_q, new.implicit_q)
    assert not one_member.same(swapped.actor, new.actor)


def test_the_verifier_is_the_lower_head(rng):
    idql, state, _ = tiny()
    s, a = rng.normal(size=4), rng.uniform(-1, 1, 3)
    exact = slow.q_values(state.implicit_q.critic, s, a)
    found = idql.policy(state).score(
        jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32), steps=10
    )
    assert exact.min() < exact.max()
    assert float(found) == pytest.approx(exact.min(), rel=1e-3)


@pytest.mark.parametrize("steps", [0, 5, 10])
def test_more_steps_than_were_trained_are_refused(steps):
    idql, state, _ = tiny(diffusion_steps=4)
    with pytest.raises(InputError, match=f"cannot act in {steps} sampling steps.*from 1 to 4"):
        idql.policy(state).check_steps(steps)
    for fine in (1, 3, 4):
        idql.policy(state).check_steps(fine)


@pytest.mark.parametrize(
    "fields",
    [
        {"diffusion_steps": 0},
        {"expectile": 1.0},
        {"discount": 1.0},
        {"hidden": ()},
        {"learning_rate": 0.0},
        {"target_rate": -0.1},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        IDQL(**fields)


# Known answers -------------------------------------------------------------------------------

MODES = probes.FOUR_MODES


@pytest.fixture(scope="module")
def four_modes() -> IDQLPolicy:
    """Trained on four modes; the rarer the mode, the higher its reward: 0, 1, 2 and 3."""
    actions = MODES.draw(np.random.default_rng(0), 2 * probes.EPISODES)
    dataset = probes.bandit(actions, MODES.nearest(actions).astype(float))
    idql = IDQL(hidden=(64, 64), learning_rate=2e-3, target_rate=0.02)
    return idql.policy(one_member.learn(idql, dataset, updates=1500))


@eqx.filter_jit
def _draw(policy, keys, budget):
    observation = jnp.asarray(probes.STATES[0])
    return jax.vmap(lambda key: act(policy, observation, budget=budget, key=key))(keys)


def draw(policy: IDQLPolicy, count: int, budget: Budget) -> np.ndarray:
    return np.asarray(_draw(policy, jax.random.split(jax.random.key(1), count), budget))


@pytest.mark.parametrize("steps", [5, 10])
def test_the_draws_are_the_behaviour_all_four_modes_of_it(four_modes, steps):
    """As probable as in the data, though the critic knows that one is best."""
    actions = draw(four_modes, 2000, Budget(steps, 1))
    true = MODES.draw(np.random.default_rng(99), 2000)
    energy = probes.energy_distance(actions, true)
    print(steps, energy, MODES.shares(actions), MODES.astray(actions))
    assert energy < 0.05
    np.testing.assert_allclose(MODES.shares(actions), MODES.weights, atol=0.07)
    # What the check is worth: one Gaussian of the same moments, and modes of equal weight, fail.
    rng = np.random.default_rng(5)
    gaussian = true.mean(axis=0) + true.std(axis=0) * rng.normal(size=true.shape)
    even = MODES.centres[rng.integers(0, 4, 2000)] + MODES.spread * rng.normal(size=true.shape)
    assert probes.energy_distance(gaussian, true) > 0.05
    assert np.abs(MODES.shares(even) - MODES.weights).max() > 0.07


@pytest.mark.parametrize("best_of", [4, 32])
def test_the_best_of_n_has_the_odds_of_the_best_of_n(four_modes, best_of):
    """The best mode among N draws is mode k with P(all ≤ k) - P(all < k)."""
    actions = draw(four_modes, 500, Budget(10, best_of))
    at_most = np.cumsum(MODES.weights) ** best_of
    exact = np.diff(at_most, prepend=0)
    print(best_of, MODES.shares(actions), exact, MODES.astray(actions))
    np.testing.assert_allclose(MODES.shares(actions), exact, atol=0.1)
