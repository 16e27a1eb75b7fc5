"""FBRAC: its losses against NumPy, an update by hand, clone or improver as its weight says."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
import probes
from flow_baselines import (
    MODES,
    ROWS,
    assert_finds_the_optimum,
    assert_solves_two_steps,
    draw,
    first_update,
    learn,
    mode_bandit,
    noise_of,
    slow_flow_action,
    slow_flow_matching_errors,
    state_with_another_target,
)
from one_member import assert_same, batch_of, first_adam_step
from sorl.algorithms.fbrac import FBRAC
from sorl.errors import InputError
from sorl.flow_policy import FlowPolicy
from sorl.losses import critic_loss
from sorl.types import Budget

pytestmark = pytest.mark.optimised

SMALL = FBRAC(
    hidden=(16, 16),
    learning_rate=1e-3,
    flow_matching_coef=7.0,
    flow_steps=3,
    discount=0.9,
    target_aggregation="min",
)


@pytest.fixture(scope="module")
def state():
    """A state whose target is another network than the critic."""
    return state_with_another_target(SMALL)


@pytest.mark.parametrize("normalise_q", [True, False])
def test_actor_loss_equals_numpy(rng, state, normalise_q):
    # The actor's Q takes the mean over heads even where targets take the minimum.
    algorithm = dataclasses.replace(SMALL, normalise_q=normalise_q)
    batch, key = batch_of(rng, ROWS), jax.random.key(5)
    critic = state.td_critic.critic
    loss, metrics = jax.jit(lambda actor: algorithm.actor_loss(actor, critic, batch, key=key))(
        state.actor
    )
    q_key, flow_key = jax.random.split(key)
    noise, q = noise_of(q_key), []
    for i in range(ROWS):
        s = np.asarray(batch.observation[i], np.float64)
        q.append(slow.q_values(critic, s, slow_flow_action(state.actor, s, noise[i], 3)).mean())
    q_loss = -np.mean(q) / (np.abs(q).mean() if normalise_q else 1)
    flow_matching = slow_flow_matching_errors(state.actor, batch, flow_key).mean()
    assert loss == pytest.approx(q_loss + 7.0 * flow_matching, rel=1e-3)
    assert metrics["q_loss"] == pytest.approx(q_loss, rel=1e-3, abs=1e-5)
    assert metrics["flow_matching_loss"] == pytest.approx(flow_matching, rel=1e-3)


def test_an_update_is_one_adam_on_each_loss_and_the_actor_reads_the_new_critic(rng, state):
    batch, key = batch_of(rng, ROWS), jax.random.key(9)
    new, metrics = first_update(SMALL, state, batch, key)
    critic_key, actor_key = jax.random.split(key)
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    noise, targets, losses = noise_of(critic_key), [], []
    for i in range(ROWS):
        a2 = slow_flow_action(state.actor, s2[i], noise[i], 3)
        y = r[i] + 0.9 * m[i] * slow.q_values(state.td_critic.target_critic, s2[i], a2).min()
        targets.append(y)
        losses.append(np.mean((slow.q_values(state.td_critic.critic, s[i], a[i]) - y) ** 2))
    assert metrics["critic/loss"] == pytest.approx(np.mean(losses), rel=1e-3)

    y = jnp.asarray(targets, jnp.float32)
    logged, critic = (batch.observation, batch.action), new.td_critic.critic
    for name, before, after, loss in (
        ("critic", state.td_critic.critic, critic, lambda q: critic_loss(q, *logged, y)[0]),
        (
            "actor",
            state.actor,
            new.actor,
            lambda actor: SMALL.actor_loss(actor, critic, batch, key=actor_key)[0],
        ),
    ):
        moved, value, norm = first_adam_step(loss, before, learning_rate=1e-3)
        assert_same(after, moved, atol=3e-5)
        assert metrics[f"{name}/loss"] == pytest.approx(value, rel=1e-4), name
        assert metrics[f"{name}/gradient_norm"] == pytest.approx(norm, rel=1e-4), name


def test_policy_and_its_budget(state):
    policy = SMALL.policy(state)
    assert isinstance(policy, FlowPolicy)
    assert policy.aggregation == "min"
    assert policy.critic is state.td_critic.critic
    assert policy.velocity is state.actor
    assert FBRAC.default_budget == Budget(steps=10, best_of=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"flow_matching_coef": -1.0},
        {"flow_matching_coef": math.nan},
        {"flow_steps": 0},
        {"discount": 1.0},
        {"hidden": (0,)},
        {"learning_rate": 0.0},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        FBRAC(**fields)


# What theory says ----------------------------------------------------------------------------

# Four steps, to be quick.
IMPROVING = FBRAC(
    flow_matching_coef=0.1,
    flow_steps=4,
    hidden=(64, 64),
    learning_rate=1e-3,
    target_rate=0.02,
    discount=probes.TWO_STEP_DISCOUNT,
)
CLONING = dataclasses.replace(IMPROVING, flow_matching_coef=1000.0)


def test_with_a_small_weight_of_the_behaviour_it_finds_the_optimum_of_a_bandit():
    assert_finds_the_optimum(IMPROVING, steps=4)


def test_two_steps_have_the_optimal_values_and_the_first_is_taken_for_the_second():
    assert_solves_two_steps(IMPROVING, steps=4)


def test_with_a_large_weight_of_the_behaviour_it_clones_though_one_mode_pays():
    (state,) = learn(CLONING, mode_bandit(1.0), updates=1000)
    policy = CLONING.policy(state)
    actions = draw(policy, 10)
    energy = probes.energy_distance(actions, MODES.draw(np.random.default_rng(9), len(actions)))
    print(MODES.shares(actions), MODES.astray(actions), energy)
    np.testing.assert_allclose(MODES.shares(actions), MODES.weights, atol=0.08)
    assert MODES.astray(actions) < 0.2
    assert energy < 0.04
