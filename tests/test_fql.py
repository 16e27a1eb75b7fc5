"""FQL: its losses against NumPy, an update by hand, clone or improver as its weight says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
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
from one_member import SPEC, assert_same, batch_of, first_adam_step
from sorl.algorithms.fql import FQL, FQLPolicy
from sorl.errors import InputError
from sorl.flow_policy import flow_actions
from sorl.losses import critic_loss
from sorl.types import Budget

pytestmark = pytest.mark.optimised

SMALL = FQL(
    hidden=(16, 16),
    learning_rate=1e-3,
    distillation_coef=7.0,
    flow_steps=3,
    discount=0.9,
    target_aggregation="min",
)


@pytest.fixture(scope="module")
def state():
    """A state whose target is another network than the critic; some of the actor's actions clip."""
    return state_with_another_target(SMALL)


def slow_actor(network: Any, s: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """μ(s, z), not clipped."""
    return slow.mlp(network.mlp, np.concatenate([s, noise]))


@pytest.mark.parametrize("normalise_q", [True, False])
def test_actor_loss_equals_numpy(rng, state, normalise_q):
    # The actor's Q takes the mean over heads even where targets take the minimum.
    algorithm = dataclasses.replace(SMALL, normalise_q=normalise_q)
    batch, critic = batch_of(rng, ROWS), state.td_critic.critic
    noise, taught = 3 * rng.normal(size=(ROWS, 3)), rng.uniform(-1, 1, (ROWS, 3))
    loss, metrics = jax.jit(
        lambda actor: algorithm.actor_loss(
            actor, critic, batch, jnp.asarray(noise, jnp.float32), jnp.asarray(taught, jnp.float32)
        )
    )(state.actor)
    q, distances, largest = [], [], 0.0
    for i in range(ROWS):
        s = np.asarray(batch.observation[i], np.float64)
        mu = slow_actor(state.actor, s, noise[i])
        largest = max(largest, np.abs(mu).max())
        distances.append(np.mean((mu - taught[i]) ** 2))
        q.append(slow.q_values(critic, s, np.clip(mu, -1, 1)).mean())
    assert largest > 1.2  # the distance is to what was not clipped, the value of what was
    q_loss = -np.mean(q) / (np.abs(q).mean() if normalise_q else 1)
    assert loss == pytest.approx(7.0 * np.mean(distances) + q_loss, rel=1e-3)
    assert metrics["distillation_loss"] == pytest.approx(np.mean(distances), rel=1e-3)
    assert metrics["q_loss"] == pytest.approx(q_loss, rel=1e-3, abs=1e-5)


def test_an_update_is_one_adam_on_each_loss_and_the_actor_reads_the_new_critic_and_teacher(
    rng, state
):
    batch, key = batch_of(rng, ROWS), jax.random.key(9)
    new, metrics = first_update(SMALL, state, batch, key)
    critic_key, behaviour_key, actor_key = jax.random.split(key, 3)
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    noise, z = noise_of(critic_key), noise_of(actor_key)
    targets, losses, taught = [], [], []
    for i in range(ROWS):
        a2 = np.clip(slow_actor(state.actor, s2[i], noise[i]), -1, 1)
        y = r[i] + 0.9 * m[i] * slow.q_values(state.td_critic.target_critic, s2[i], a2).min()
        targets.append(y)
        losses.append(np.mean((slow.q_values(state.td_critic.critic, s[i], a[i]) - y) ** 2))
        taught.append(slow_flow_action(new.behaviour, s[i], z[i], 3))
    assert metrics["critic/loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    flow_matching = slow_flow_matching_errors(state.behaviour, batch, behaviour_key).mean()
    assert metrics["behaviour/loss"] == pytest.approx(flow_matching, rel=1e-3)

    y, z, taught = (jnp.asarray(value, jnp.float32) for value in (targets, z, taught))
    logged, critic = (batch.observation, batch.action), new.td_critic.critic
    for name, before, after, loss in (
        ("critic", state.td_critic.critic, critic, lambda q: critic_loss(q, *logged, y)[0]),
        (
            "behaviour",
            state.behaviour,
            new.behaviour,
            lambda behaviour: SMALL.behaviour_loss(behaviour, batch, key=behaviour_key)[0],
        ),
        (
            "actor",
            state.actor,
            new.actor,
            lambda actor: SMALL.actor_loss(actor, critic, batch, z, taught)[0],
        ),
    ):
        moved, value, norm = first_adam_step(loss, before, learning_rate=1e-3)
        assert_same(after, moved, atol=3e-5)
        assert metrics[f"{name}/loss"] == pytest.approx(value, rel=1e-4), name
        assert metrics[f"{name}/gradient_norm"] == pytest.approx(norm, rel=1e-4), name


def test_policy_samples_and_scores_as_numpy_does_in_one_pass(rng, state):
    policy = SMALL.policy(state)
    assert isinstance(policy, FQLPolicy)
    assert FQL.default_budget == Budget(steps=1, best_of=1)
    s, key = rng.normal(size=4), jax.random.key(2)
    action = eqx.filter_jit(policy.sample)(jnp.asarray(s, jnp.float32), steps=1, key=key)
    noise = np.asarray(jax.random.normal(key, (3,)), np.float64)
    np.testing.assert_allclose(action, np.clip(slow_actor(state.actor, s, noise), -1, 1), atol=1e-4)
    score = eqx.filter_jit(policy.score)(jnp.asarray(s, jnp.float32), action, steps=1)
    exact = slow.q_values(state.td_critic.critic, s, np.asarray(action, np.float64)).min()
    assert score == pytest.approx(exact, rel=1e-3, abs=1e-5)
    policy.check_steps(1)
    for steps in (0, 2, 10):
        with pytest.raises(InputError, match=f"cannot act in {steps} sampling steps"):
            policy.check_steps(steps)


@pytest.mark.parametrize(
    "fields",
    [
        {"distillation_coef": -1.0},
        {"distillation_coef": math.nan},
        {"flow_steps": 0},
        {"discount": 1.0},
        {"hidden": ()},
        {"actor_hidden": (0,)},
        {"learning_rate": 0.0},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        FQL(**fields)


def test_actor_and_teacher_may_have_sizes_of_their_own():
    algorithm = FQL(hidden=(16, 16), actor_hidden=(8,))
    state = jax.eval_shape(lambda key: algorithm.init(SPEC, key=key), jax.random.key(0))
    for network in (state.actor, state.behaviour):
        assert network.mlp.layers[0].weight.shape[1] == 8
    assert state.td_critic.critic.mlps.layers[0].weight.shape == (2, 7, 16)


def test_published_weights():
    assert {name.split("-")[0]: p["distillation_coef"] for name, p in FQL.presets.items()} == {
        "antmaze": 10,
        "humanoidmaze": 30,
        "antsoccer": 10,
        "cube": 300,
        "scene": 300,
    }
    assert not any("normalise_q" in preset for preset in FQL.presets.values())


# What theory says ----------------------------------------------------------------------------

IMPROVING = FQL(
    distillation_coef=0.1,
    hidden=(64, 64),
    learning_rate=1e-3,
    target_rate=0.02,
    discount=probes.TWO_STEP_DISCOUNT,
)
CLONING = dataclasses.replace(IMPROVING, distillation_coef=100.0)


def test_with_a_small_weight_of_the_teacher_it_finds_the_optimum_of_a_bandit():
    assert_finds_the_optimum(IMPROVING, steps=1)


def test_two_steps_have_the_optimal_values_and_the_first_is_taken_for_the_second():
    assert_solves_two_steps(IMPROVING, steps=1)


def test_with_a_large_weight_one_pass_lands_where_the_teachers_ten_steps_do():
    """Draw by draw from the same noise, and so in both modes, though only one of them pays.

    A smooth map of the noise cannot tear it apart: more draws than the teacher's lie between the
    modes.
    """
    (state,) = learn(CLONING, mode_bandit(1.0), updates=1500)
    actions = draw(CLONING.policy(state), 1)
    energy = probes.energy_distance(actions, MODES.draw(np.random.default_rng(9), len(actions)))
    print(MODES.shares(actions), MODES.astray(actions), energy)
    np.testing.assert_allclose(MODES.shares(actions), MODES.weights, atol=0.08)
    assert MODES.astray(actions) < 0.25
    assert energy < 0.04

    rows = jnp.asarray(np.tile(probes.STATES[0], (500, 1)))
    noise = jax.random.normal(jax.random.key(4), (500, 2))
    taught = np.asarray(eqx.filter_jit(flow_actions)(state.behaviour, rows, noise, steps=10))
    landed = np.asarray(jnp.clip(jax.vmap(state.actor)(rows, noise), -1, 1))
    same, other = (np.abs(landed - to).mean() for to in (taught, np.roll(taught, 1, axis=0)))
    print(same, other)
    assert same < 0.08
    assert other > 0.2
