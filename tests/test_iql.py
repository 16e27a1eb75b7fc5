"""IQL: the policy's loss against NumPy, and what its weights and its expectile define."""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import numpy_networks as slow
import one_member
import probes
from sorl import implicit_q
from sorl.algorithms.iql import IQL
from sorl.errors import InputError
from sorl.inference import act
from sorl.optim import adam
from sorl.types import Budget

pytestmark = pytest.mark.optimised

ROWS = 12
EXPECTILE = 0.9


def tiny(**fields) -> tuple:
    """A small IQL whose target critic differs from its critic, and a batch."""
    iql = IQL(**{"hidden": (16,), "learning_rate": 1e-3, "discount": 0.9, **fields})
    state = iql.init(one_member.SPEC, key=jax.random.key(0))
    other = iql.init(one_member.SPEC, key=jax.random.key(1))
    state = eqx.tree_at(lambda s: s.implicit_q.target_critic, state, other.implicit_q.target_critic)
    return iql, state, one_member.batch_of(np.random.default_rng(0), ROWS)


@pytest.mark.parametrize("inverse_temperature", [0.0, 2.0, 50.0])
def test_actor_loss_equals_numpy(rng, inverse_temperature):
    iql, state, batch = tiny(inverse_temperature=inverse_temperature)
    advantage = rng.normal(size=ROWS)
    loss, metrics = jax.jit(iql.actor_loss)(state.actor, batch, jnp.asarray(advantage, jnp.float32))
    s, a = one_member.float64(batch)[:2]
    weights = np.minimum(np.exp(inverse_temperature * advantage), 100)
    assert (weights.max() == 100) == (inverse_temperature == 50)
    exact = [
        weights[i] * 0.5 * np.sum((a[i] - slow.mlp(state.actor.mlp, s[i])) ** 2)
        for i in range(ROWS)
    ]
    assert loss == pytest.approx(np.mean(exact), rel=1e-3)
    assert metrics["weight"] == pytest.approx(weights.mean(), rel=1e-3)
    assert metrics["advantage"] == pytest.approx(advantage.mean(), rel=1e-3)


def test_update_is_one_of_the_critic_and_one_adam_step_of_the_actor(rng):
    iql, state, batch = tiny(inverse_temperature=2.0)
    new, metrics = jax.jit(iql.update)(state, batch, jnp.int32(0), key=jax.random.key(1))
    critic, critic_metrics = jax.jit(
        lambda state: implicit_q.update(
            state,
            batch,
            adam(1e-3, max_gradient_norm=None),
            discount=0.9,
            expectile=iql.expectile,
            target_rate=0.005,
        )
    )(state.implicit_q)
    one_member.assert_same(new.implicit_q, critic, atol=1e-6)
    for name, value in critic_metrics.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4)

    # V after its step, the target critic before its own.
    s, a = one_member.float64(batch)[:2]
    advantage = [
        slow.q_values(state.implicit_q.target_critic, s[i], a[i]).min()
        - slow.mlp(critic.value.mlp, s[i])[0]
        for i in range(ROWS)
    ]
    assert metrics["actor/advantage"] == pytest.approx(np.mean(advantage), rel=1e-3)

    actor, loss, norm = one_member.first_adam_step(
        lambda actor: iql.actor_loss(actor, batch, jnp.asarray(advantage, jnp.float32))[0],
        state.actor,
        learning_rate=1e-3,
    )
    one_member.assert_same(new.actor, actor, atol=1e-5)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-3)


def test_actor_loss_moves_the_actor_alone():
    iql, state, batch = tiny()
    gradient = one_member.gradient_of(
        lambda s: iql.actor_loss(s.actor, batch, implicit_q.advantage(s.implicit_q, batch))[0],
        state,
    )
    assert one_member.all_move(gradient.actor)
    assert one_member.none_moves(gradient.implicit_q)


def test_the_policy_acts_with_the_mean_and_scores_with_the_lower_head(rng):
    iql, state, _ = tiny()
    policy = iql.policy(state)
    s, a = rng.normal(size=4), rng.uniform(-1, 1, 3)
    observation, action = jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32)
    found = act(policy, observation, budget=Budget(1, 8), key=jax.random.key(3))
    np.testing.assert_allclose(found, np.clip(slow.mlp(state.actor.mlp, s), -1, 1), atol=1e-5)
    exact = slow.q_values(state.implicit_q.critic, s, a)
    assert exact.min() < exact.max()
    assert policy.score(observation, action, steps=1) == pytest.approx(exact.min(), rel=1e-3)


def test_with_a_spread_best_of_n_raises_the_score(rng):
    iql, state, _ = tiny(sampling_std=0.3)
    policy = iql.policy(state)
    observation = jnp.asarray(rng.normal(size=4), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)

    def score(key, best_of):
        action = act(policy, observation, budget=Budget(1, best_of), key=key)
        return policy.score(observation, action, steps=1)

    one, sixteen = jax.jit(
        lambda keys: [
            jnp.mean(jax.vmap(lambda key, n=best_of: score(key, n))(keys)) for best_of in (1, 16)
        ]
    )(keys)
    assert sixteen > one
    still = dataclasses.replace(iql, sampling_std=0.0).policy(state)
    one, sixteen = (
        act(still, observation, budget=Budget(1, best_of), key=keys[0]) for best_of in (1, 16)
    )
    np.testing.assert_allclose(one, sixteen, atol=1e-6)


# Known answers -------------------------------------------------------------------------------


def improving(inverse_temperature: float) -> IQL:
    return IQL(
        inverse_temperature=inverse_temperature,
        expectile=EXPECTILE,
        discount=probes.TWO_STEP_DISCOUNT,
        hidden=(32, 32),
        learning_rate=2e-3,
        target_rate=0.05,
    )


def expectile_of(values: list[float], shares: list[float]) -> float:
    return float(scipy.stats.expectile(np.array(values), alpha=EXPECTILE, weights=np.array(shares)))


def weighted_mean(
    values: list[float], shares: list[float], actions: np.ndarray, inverse_temperature: float
) -> np.ndarray:
    """E[w a] / E[w] with w = min(exp(α (Q - V)), 100), V the expectile of Q."""
    advantage = np.array(values) - expectile_of(values, shares)
    weights = np.array(shares) * np.minimum(np.exp(inverse_temperature * advantage), 100)
    return weights @ actions / weights.sum()


# Two modes in the plane; the rare one has reward 1, the frequent one 0.
MODES = probes.Mixture(np.array([[-0.5, 0.3], [0.5, -0.3]]), np.array([0.7, 0.3]), 0.1)


@pytest.mark.parametrize("inverse_temperature", [1.0, 10.0])
def test_of_two_modes_a_large_alpha_takes_the_better_and_a_small_one_averages(
    inverse_temperature,
):
    actions = MODES.draw(np.random.default_rng(0), 2 * probes.EPISODES)
    dataset = probes.bandit(actions, MODES.nearest(actions).astype(float))
    iql = improving(inverse_temperature)
    state = one_member.learn(iql, dataset, updates=1500)
    action = one_member.action_in(iql.policy(state), 0)
    exact = weighted_mean([0.0, 1.0], list(MODES.weights), MODES.centres, inverse_temperature)
    value = float(state.implicit_q.value(jnp.asarray(probes.STATES[0])))
    print(inverse_temperature, action, exact, value, expectile_of([0.0, 1.0], [0.7, 0.3]))
    np.testing.assert_allclose(action, exact, atol=0.06)
    assert value == pytest.approx(expectile_of([0.0, 1.0], [0.7, 0.3]), abs=0.08)
    # What the weights say: the better mode itself, or a point between the two.
    assert MODES.astray(action[None]) == (inverse_temperature == 1.0)


def test_two_steps_have_the_values_and_the_policy_that_the_expectile_defines():
    """From the end: V(1) of rewards ±1, then Q(0, right) = γ V(1), then V(0)."""
    dataset, _ = probes.two_step(np.random.default_rng(0))
    iql = improving(10.0)
    state = one_member.learn(iql, dataset, updates=1500)
    policy = iql.policy(state)

    even = [0.5, 0.5]
    second = [-1.0, 1.0]
    first = [0.5, probes.TWO_STEP_DISCOUNT * expectile_of(second, even)]
    rng = np.random.default_rng(1)
    sides = np.array([[-0.6, 0.0], [0.6, 0.0]])  # the mean action of each side
    for i, values in enumerate((first, second)):
        observation = jnp.asarray(probes.STATES[i])
        value = float(state.implicit_q.value(observation))
        print(i, value, expectile_of(values, even))
        assert value == pytest.approx(expectile_of(values, even), abs=0.07)
        for side, exact in zip((-1, 1), values, strict=True):
            actions = jnp.asarray(probes.sided_actions(rng, 200, side), jnp.float32)
            scores = jax.vmap(lambda a, s=observation: policy.score(s, a, steps=1))(actions)
            print(i, side, scores.mean(), exact)
            assert scores.mean() == pytest.approx(exact, abs=0.1)
        action = one_member.action_in(policy, i)
        exact = weighted_mean(values, even, sides, 10.0)
        print(i, action, exact)
        np.testing.assert_allclose(action, exact, atol=0.15)


@pytest.mark.parametrize(
    "fields",
    [
        {"inverse_temperature": -1.0},
        {"inverse_temperature": math.inf},
        {"expectile": 1.0},
        {"expectile": 0.0},
        {"discount": 1.0},
        {"hidden": (16, 0)},
        {"learning_rate": 0.0},
        {"target_rate": 0.0},
        {"sampling_std": -0.1},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        IQL(**fields)
