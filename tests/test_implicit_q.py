"""Implicit Q-learning: losses against NumPy, and the values that its equations define."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import numpy_networks as slow
import probes
from one_member import assert_same, first_adam_step
from sorl import implicit_q
from sorl.losses import critic_loss, td_target
from sorl.optim import adam
from sorl.types import Spec, Transition

SPEC = Spec(observation_size=4, action_size=3)
ROWS = 8
OPTIMIZER = adam(1e-3, max_gradient_norm=None)


def fresh(seed: int = 0) -> implicit_q.ImplicitQ:
    return implicit_q.init(SPEC, (16, 16), OPTIMIZER, heads=2, key=jax.random.key(seed))


def told_apart() -> implicit_q.ImplicitQ:
    """A state whose target is another network than the critic."""
    return eqx.tree_at(lambda s: s.target_critic, fresh(0), fresh(1).critic)


def batch_of(rng) -> Transition:
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Transition(
        observation=normal(ROWS, 4),
        action=normal(ROWS, 3),
        reward=normal(ROWS),
        mask=jnp.asarray([1, 0, 1, 1, 0, 1, 1, 1], jnp.float32),
        next_observation=normal(ROWS, 4),
        next_action=normal(ROWS, 3),
        next_action_mask=jnp.ones(ROWS),
    )


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_one_update_reports_the_losses_of_numpy(rng, expectile):
    state, batch = told_apart(), batch_of(rng)
    new, metrics = implicit_q.update(
        state, batch, OPTIMIZER, discount=0.9, expectile=expectile, target_rate=0.25
    )
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    value_losses, critic_losses, values = [], [], []
    for i in range(ROWS):
        v = slow.mlp(state.value.mlp, s[i])[0]
        u = slow.q_values(state.target_critic, s[i], a[i]).min() - v
        value_losses.append((expectile if u > 0 else 1 - expectile) * u**2)
        values.append(v)
        # Q's target reads V after its own step.
        y = r[i] + 0.9 * m[i] * slow.mlp(new.value.mlp, s2[i])[0]
        critic_losses.append(np.mean((slow.q_values(state.critic, s[i], a[i]) - y) ** 2))
    assert metrics["value/loss"] == pytest.approx(np.mean(value_losses), rel=1e-3)
    assert metrics["value/v"] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5)
    assert metrics["critic/loss"] == pytest.approx(np.mean(critic_losses), rel=1e-3)
    advantage = implicit_q.advantage(new, batch)
    for i in range(ROWS):
        q = slow.q_values(new.target_critic, s[i], a[i]).min()
        exact = q - slow.mlp(new.value.mlp, s[i])[0]
        assert advantage[i] == pytest.approx(exact, rel=1e-3, abs=1e-4)
    for average, old, online in zip(
        jax.tree.leaves(new.target_critic),
        jax.tree.leaves(state.target_critic),
        jax.tree.leaves(new.critic),
        strict=True,
    ):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * online, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_one_update_is_one_step_of_adam_for_v_and_then_for_q(rng, expectile):
    state, batch = told_apart(), batch_of(rng)
    new, metrics = implicit_q.update(
        state, batch, OPTIMIZER, discount=0.9, expectile=expectile, target_rate=0.25
    )
    q = implicit_q.lowest_q(state.target_critic, batch)

    def of_value(value):
        return implicit_q.value_loss(value, batch, q, expectile=expectile)[0]

    def of_critic(critic):
        after = jax.vmap(new.value)(batch.next_observation)
        y = td_target(batch.reward, batch.mask, after, discount=0.9)
        return critic_loss(critic, batch.observation, batch.action, y)[0]

    for name, loss in (("value", of_value), ("critic", of_critic)):
        moved, before, norm = first_adam_step(loss, getattr(state, name), learning_rate=1e-3)
        assert_same(getattr(new, name), moved, atol=3e-5)
        assert metrics[f"{name}/loss"] == pytest.approx(before, rel=1e-4)
        assert metrics[f"{name}/gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_no_loss_moves_a_target():
    """V's loss passes no gradient into Q's target network, nor Q's into V."""
    state, batch = told_apart(), batch_of(np.random.default_rng(1))

    def moved(before, after):
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return any(not np.array_equal(a, b) for a, b in pairs)

    new, _ = implicit_q.update(
        state, batch, OPTIMIZER, discount=0.9, expectile=0.9, target_rate=1e-9
    )
    assert moved(state.value, new.value)
    assert moved(state.critic, new.critic)
    for average, old in zip(
        jax.tree.leaves(new.target_critic), jax.tree.leaves(state.target_critic), strict=True
    ):
        np.testing.assert_allclose(average, old, atol=1e-7)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_two_steps_have_the_values_that_the_expectile_defines(expectile):
    """V(1) is the expectile of the rewards ±1; Q(0, right) = γ V(1); V(0) that of 0.5 and it."""
    dataset, _ = probes.two_step(np.random.default_rng(0))
    optimizer = adam(2e-3, max_gradient_norm=None)
    state = implicit_q.init(dataset.spec, (32, 32), optimizer, heads=2, key=jax.random.key(0))

    @jax.jit
    def run(state, data):
        def body(i, state):
            batch = data.sample(jax.random.fold_in(jax.random.key(1), i), jnp.int32(0), 256)
            return implicit_q.update(
                state,
                batch,
                optimizer,
                discount=probes.TWO_STEP_DISCOUNT,
                expectile=expectile,
                target_rate=0.05,
            )[0]

        return jax.lax.fori_loop(0, 1500, body, state)

    state = run(state, dataset)
    second = scipy.stats.expectile(np.array([-1.0, 1.0]), alpha=expectile)
    right = probes.TWO_STEP_DISCOUNT * second
    first = scipy.stats.expectile(np.array([0.5, right]), alpha=expectile)
    rng = np.random.default_rng(2)
    actions = jnp.asarray(probes.sided_actions(rng, 200, 1), jnp.float32)
    states = jnp.asarray(np.tile(probes.STATES[0], (200, 1)))
    assert state.value(jnp.asarray(probes.STATES[1])) == pytest.approx(second, abs=0.1)
    assert jnp.mean(state.critic.batch(states, actions)) == pytest.approx(right, abs=0.1)
    assert state.value(jnp.asarray(probes.STATES[0])) == pytest.approx(first, abs=0.1)
