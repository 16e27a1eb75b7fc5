"""The shared temporal-difference critic: target, step and average against NumPy."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
from one_member import SPEC, assert_same, batch_of, first_adam_step, same
from sorl import td_critic
from sorl.losses import critic_loss
from sorl.optim import adam

ROWS = 8
OPTIMIZER = adam(1e-3, max_gradient_norm=None)


@pytest.fixture(scope="module")
def state() -> td_critic.TDCritic:
    """A state whose target is another network than the critic."""
    fresh, other = (
        td_critic.init(SPEC, (16, 16), OPTIMIZER, heads=2, key=jax.random.key(seed))
        for seed in (0, 1)
    )
    return eqx.tree_at(lambda s: s.target_critic, fresh, other.critic)


@functools.partial(jax.jit, static_argnames="aggregation")
def update(state, batch, next_action, aggregation):
    return td_critic.update(
        state,
        batch,
        next_action,
        OPTIMIZER,
        discount=0.9,
        aggregation=aggregation,
        target_rate=0.25,
    )


@functools.partial(jax.jit, static_argnames="aggregation")
def target(state, batch, next_action, aggregation):
    return td_critic.target(state, batch, next_action, discount=0.9, aggregation=aggregation)


def test_target_starts_as_a_copy():
    fresh = td_critic.init(SPEC, (16, 16), OPTIMIZER, heads=2, key=jax.random.key(0))
    assert same(fresh.target_critic, fresh.critic)


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_target_and_loss_equal_numpy(rng, state, aggregation):
    batch = batch_of(rng, ROWS)
    next_action = rng.uniform(-1, 1, (ROWS, 3))
    found = target(state, batch, jnp.asarray(next_action, jnp.float32), aggregation)
    _, metrics = update(state, batch, jnp.asarray(next_action, jnp.float32), aggregation)
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    combine = np.mean if aggregation == "mean" else np.min
    losses, q = [], []
    for i in range(ROWS):
        y = r[i] + 0.9 * m[i] * combine(slow.q_values(state.target_critic, s2[i], next_action[i]))
        assert found[i] == pytest.approx(y, rel=1e-3, abs=1e-4)
        q.append(slow.q_values(state.critic, s[i], a[i]))
        losses.append(np.mean((q[-1] - y) ** 2))
    assert metrics["critic/loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert metrics["critic/q"] == pytest.approx(np.mean(q), rel=1e-3, abs=1e-4)


def test_update_is_one_step_of_adam_and_one_of_the_average(rng, state):
    batch = batch_of(rng, ROWS)
    next_action = jnp.asarray(rng.uniform(-1, 1, (ROWS, 3)), jnp.float32)
    new, metrics = update(state, batch, next_action, "min")
    y = target(state, batch, next_action, "min")

    def loss(critic):
        return critic_loss(critic, batch.observation, batch.action, y)[0]

    critic, _, norm = first_adam_step(loss, state.critic, learning_rate=1e-3)
    assert_same(new.critic, critic, atol=3e-5)
    assert metrics["critic/gradient_norm"] == pytest.approx(norm, rel=1e-4)
    average = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, state.target_critic, new.critic)
    assert_same(new.target_critic, average, atol=1e-6)


def test_the_target_passes_no_gradient(rng, state):
    """Neither into the target network nor, through a', into the policy that drew it."""
    batch = batch_of(rng, ROWS)

    @jax.jit
    def total(networks, next_action):
        return jnp.sum(target(eqx.combine(networks, rest), batch, next_action, "mean"))

    networks, rest = eqx.partition(state, eqx.is_inexact_array)
    gradient = jax.grad(total, argnums=(0, 1))(networks, jnp.zeros((ROWS, 3)))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
