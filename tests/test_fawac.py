"""FAWAC: its losses against NumPy, an update by hand, shares of modes that are known exactly."""

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
    draw,
    first_update,
    learn,
    mode_bandit,
    noise_of,
    scores,
    slow_flow_action,
    slow_flow_matching_errors,
    state_with_another_target,
)
from one_member import (
    all_move,
    assert_same,
    batch_of,
    first_adam_step,
    gradient_of,
    none_moves,
)
from sorl.algorithms.fawac import FAWAC
from sorl.errors import InputError
from sorl.flow_policy import FlowPolicy
from sorl.losses import critic_loss
from sorl.types import Budget

pytestmark = pytest.mark.optimised

SMALL = FAWAC(
    hidden=(16, 16),
    learning_rate=1e-3,
    inverse_temperature=3.0,
    flow_steps=4,
    discount=0.9,
    target_aggregation="min",
)


@pytest.fixture(scope="module")
def state():
    """A state whose target is another network than the critic."""
    return state_with_another_target(SMALL)


def test_actor_loss_equals_numpy_and_caps_its_weights(rng, state):
    batch, key = batch_of(rng, ROWS), jax.random.key(5)
    advantage = rng.normal(size=ROWS)
    advantage[0] = 50.0  # exp(150) would be infinite
    loss, metrics = jax.jit(lambda *given: SMALL.actor_loss(*given, key=key))(
        state.actor, batch, jnp.asarray(advantage, jnp.float32)
    )
    errors = slow_flow_matching_errors(state.actor, batch, key)
    weights = np.minimum(np.exp(3.0 * advantage), 100)
    assert weights.max() == 100
    assert loss == pytest.approx(np.mean(weights * errors), rel=1e-3)
    assert metrics["flow_matching_loss"] == pytest.approx(errors.mean(), rel=1e-3)
    assert metrics["weight"] == pytest.approx(weights.mean(), rel=1e-4)


def test_one_update_reports_the_losses_of_numpy_and_moves_each_network_by_its_own(rng, state):
    """The critic's target from the flow of before; V and the advantage from the new average."""
    batch, key = batch_of(rng, ROWS), jax.random.key(9)
    new, metrics = first_update(SMALL, state, batch, key)
    critic_key, actor_key = jax.random.split(key)
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    noise = noise_of(critic_key)
    targets, critic_losses, value_losses, advantages = [], [], [], []
    for i in range(ROWS):
        a2 = slow_flow_action(state.actor, s2[i], noise[i], 4)
        y = r[i] + 0.9 * m[i] * slow.q_values(state.td_critic.target_critic, s2[i], a2).min()
        targets.append(y)
        critic_losses.append(np.mean((slow.q_values(state.td_critic.critic, s[i], a[i]) - y) ** 2))
        q = slow.q_values(new.td_critic.target_critic, s[i], a[i]).min()
        value_losses.append((slow.mlp(state.value.mlp, s[i])[0] - q) ** 2)
        advantages.append(q - slow.mlp(new.value.mlp, s[i])[0])
    weights = np.minimum(np.exp(3.0 * np.array(advantages)), 100)
    errors = slow_flow_matching_errors(state.actor, batch, actor_key)
    for name, exact in {
        "critic/loss": np.mean(critic_losses),
        "value/loss": np.mean(value_losses),
        "actor/loss": np.mean(weights * errors),
        "actor/advantage": np.mean(advantages),
        "actor/flow_matching_loss": np.mean(errors),
    }.items():
        assert metrics[name] == pytest.approx(exact, rel=2e-3, abs=1e-5), name

    y = jnp.asarray(targets, jnp.float32)
    advantage = jnp.asarray(advantages, jnp.float32)
    logged, critic = (batch.observation, batch.action), new.td_critic.critic
    q = jnp.min(new.td_critic.target_critic.batch(*logged), axis=-1)
    for name, before, after, loss in (
        ("critic", state.td_critic.critic, critic, lambda q: critic_loss(q, *logged, y)[0]),
        ("value", state.value, new.value, lambda value: SMALL.value_loss(value, batch, q)[0]),
        (
            "actor",
            state.actor,
            new.actor,
            lambda actor: SMALL.actor_loss(actor, batch, advantage, key=actor_key)[0],
        ),
    ):
        moved, value, norm = first_adam_step(loss, before, learning_rate=1e-3)
        assert_same(after, moved, atol=3e-5)
        assert metrics[f"{name}/loss"] == pytest.approx(value, rel=1e-4), name
        assert metrics[f"{name}/gradient_norm"] == pytest.approx(norm, rel=1e-4), name


def test_the_actors_loss_moves_the_actor_alone(rng, state):
    """The weights are numbers to it, although value and critic went into them."""
    batch = batch_of(rng, ROWS)

    def loss(state):
        q = jnp.min(state.td_critic.target_critic.batch(batch.observation, batch.action), axis=-1)
        advantage = q - jax.vmap(state.value)(batch.observation)
        return SMALL.actor_loss(state.actor, batch, advantage, key=jax.random.key(0))[0]

    gradient = gradient_of(loss, state)
    assert all_move(gradient.actor)
    assert none_moves((gradient.td_critic, gradient.value))


def test_policy_and_its_budget(state):
    policy = SMALL.policy(state)
    assert isinstance(policy, FlowPolicy)
    assert policy.aggregation == "min"
    assert policy.critic is state.td_critic.critic
    assert FAWAC.default_budget == Budget(steps=10, best_of=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"inverse_temperature": -1.0},
        {"inverse_temperature": math.nan},
        {"flow_steps": 0},
        {"discount": 1.0},
        {"hidden": ()},
        {"target_rate": 0.0},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        FAWAC(**fields)


# What theory says ----------------------------------------------------------------------------

LEARNING = FAWAC(
    inverse_temperature=1.0,
    flow_steps=4,  # to be quick; the tests act in 10
    hidden=(64, 64),
    learning_rate=1e-3,
    target_rate=0.02,
    discount=probes.TWO_STEP_DISCOUNT,
)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_weights_tilt_the_shares_of_the_modes_by_the_exponential_of_their_rewards(reward):
    """π ∝ β exp(α Q): 0.3 of the rare mode becomes 0.3 e^αr / (0.7 + 0.3 e^αr), here α = 1.

    Where it pays nothing the advantage says nothing, and the flow clones.
    """
    tilted = MODES.weights * np.exp([0.0, reward])
    exact = dataclasses.replace(MODES, weights=tilted / tilted.sum())
    (state,) = learn(LEARNING, mode_bandit(reward), updates=1500, batch_size=256)
    actions = draw(LEARNING.policy(state), 10)
    energy = probes.energy_distance(actions, exact.draw(np.random.default_rng(9), len(actions)))
    print(reward, exact.weights, exact.shares(actions), exact.astray(actions), energy)
    np.testing.assert_allclose(exact.shares(actions), exact.weights, atol=0.07)
    assert exact.astray(actions) < 0.2
    assert energy < 0.04


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_two_steps_have_the_values_of_the_tilted_policy_and_at_last_the_optimal_ones(scale):
    """With rewards c times those of the probe, α = 1 does what α = c does with the probe's.

    In state 1, A = ±c, and the flow goes right with p = e^c / (e^c + e^-c) (the cap leaves enough
    of e^10), so that its value there is c (2p - 1) = c tanh(c): for c = 10 the best there is.
    """
    dataset, optimal = probes.two_step(np.random.default_rng(0))
    dataset = dataclasses.replace(dataset, rewards=scale * dataset.rewards)
    (state,) = learn(LEARNING, dataset, updates=1500, batch_size=256)
    policy = LEARNING.policy(state)
    exact = optimal | {(0, 1): optimal[0, 1] * math.tanh(scale)}
    for (place, side), value in exact.items():
        found = scores(policy, place, side)
        print(place, side, scale * value, found.mean(), found.std())
        assert found.mean() == pytest.approx(scale * value, abs=0.12 * scale)
    for place in (0, 1):
        advantage_of_right = scale * (exact[place, 1] - exact[place, -1])
        right = (draw(policy, 10, state=place)[:, 0] > 0).mean()
        print(place, 1 / (1 + math.exp(-advantage_of_right)), right)
        assert right == pytest.approx(1 / (1 + math.exp(-advantage_of_right)), abs=0.07)
