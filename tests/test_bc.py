"""Behaviour cloning: its loss against NumPy, and that it averages what the data do."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
import one_member
import probes
from sorl.algorithm import AbstractScoredPolicy
from sorl.algorithms.bc import BC
from sorl.errors import InputError

ROWS = 10
CLONING = BC(hidden=(32, 32), learning_rate=1e-3)


@pytest.fixture
def tiny() -> tuple:
    bc = BC(hidden=(16, 16), learning_rate=1e-3)
    batch = one_member.batch_of(np.random.default_rng(0), ROWS)
    return bc, bc.init(one_member.SPEC, key=jax.random.key(0)), batch


def test_loss_equals_numpy(tiny):
    bc, state, batch = tiny
    loss, _ = bc.actor_loss(state.actor, batch)
    s, a = one_member.float64(batch)[:2]
    exact = [0.5 * np.sum((a[i] - slow.mlp(state.actor.mlp, s[i])) ** 2) for i in range(ROWS)]
    assert loss == pytest.approx(np.mean(exact), rel=1e-3)


def test_update_is_one_adam_step_on_the_loss(tiny):
    bc, state, batch = tiny
    new, metrics = jax.jit(bc.update)(state, batch, jnp.int32(0), key=jax.random.key(1))
    actor, loss, norm = one_member.first_adam_step(
        lambda actor: bc.actor_loss(actor, batch)[0], state.actor, learning_rate=1e-3
    )
    one_member.assert_same(new.actor, actor, atol=3e-6)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_rewards_and_what_comes_next_are_not_read(tiny):
    bc, state, batch = tiny
    other = one_member.batch_of(np.random.default_rng(1), ROWS)
    other = other._replace(observation=batch.observation, action=batch.action)
    update, key = jax.jit(bc.update), jax.random.key(1)
    once = update(state, batch, jnp.int32(0), key=key)
    assert one_member.same(once, update(state, other, jnp.int32(0), key=key))


def test_the_policy_has_no_verifier(tiny):
    bc, state, _ = tiny
    assert not isinstance(bc.policy(state), AbstractScoredPolicy)


def test_four_modes_become_their_average():
    """The mean of the mixture, where the data have no action at all."""
    dataset = probes.behaviour(probes.FOUR_MODES, np.random.default_rng(0))
    state = one_member.learn(CLONING, dataset, updates=1000)
    action = one_member.action_in(CLONING.policy(state), 0)
    average = probes.FOUR_MODES.weights @ probes.FOUR_MODES.centres
    print(action, average)
    np.testing.assert_allclose(action, average, atol=0.06)
    assert probes.FOUR_MODES.astray(action[None]) == 1


def test_every_state_has_its_own_mean():
    dataset = probes.gaussians(np.random.default_rng(0))
    state = one_member.learn(CLONING, dataset, updates=1000)
    for i, mean in enumerate(probes.GAUSSIAN_MEANS):
        action = one_member.action_in(CLONING.policy(state), i)
        print(i, action, mean)
        np.testing.assert_allclose(action, mean, atol=0.05)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden": ()},
        {"learning_rate": 0.0},
        {"sampling_std": -0.1},
        {"sampling_std": math.nan},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        BC(**fields)
