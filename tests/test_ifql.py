"""IFQL: its loss against NumPy, an update by hand, a clone that best-of-N improves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

import probes
from flow_baselines import (
    MODES,
    ROWS,
    draw,
    first_update,
    fresh_state,
    learn,
    mode_bandit,
    scores,
    slow_flow_matching_errors,
)
from one_member import assert_same, batch_of, first_adam_step, same
from sorl import implicit_q
from sorl.algorithms.ifql import IFQL
from sorl.errors import InputError
from sorl.flow_policy import FlowPolicy
from sorl.types import Budget

pytestmark = pytest.mark.optimised

SMALL = IFQL(hidden=(16, 16), learning_rate=1e-3, discount=0.9)
LEARNING = IFQL(
    hidden=(64, 64), learning_rate=1e-3, target_rate=0.02, discount=probes.TWO_STEP_DISCOUNT
)
UPDATES = 2000


def test_actor_loss_equals_numpy(rng):
    batch, key = batch_of(rng, ROWS), jax.random.key(5)
    actor = fresh_state(SMALL, 0).actor
    loss, metrics = jax.jit(lambda actor: SMALL.actor_loss(actor, batch, key=key))(actor)
    exact = slow_flow_matching_errors(actor, batch, key).mean()
    assert loss == pytest.approx(exact, rel=1e-3)
    assert metrics["flow_matching_loss"] == loss


def test_an_update_is_that_of_implicit_q_and_one_adam_on_the_flow(rng):
    state, batch, key = fresh_state(SMALL, 0), batch_of(rng, ROWS), jax.random.key(3)
    new, metrics = first_update(SMALL, state, batch, key)
    critic, critic_metrics = jax.jit(
        lambda critic: implicit_q.update(
            critic,
            batch,
            SMALL._optimizer(),
            discount=0.9,
            expectile=0.9,
            target_rate=0.005,
        )
    )(state.implicit_q)
    assert_same(new.implicit_q, critic, atol=1e-6)
    for name, value in critic_metrics.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    actor, loss, norm = first_adam_step(
        lambda actor: SMALL.actor_loss(actor, batch, key=key)[0], state.actor, learning_rate=1e-3
    )
    assert_same(new.actor, actor, atol=3e-5)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_neither_the_critic_nor_the_flow_reads_the_other(rng):
    one, other = (fresh_state(SMALL, seed) for seed in (0, 1))
    batch, key = batch_of(rng, ROWS), jax.random.key(3)
    mixed = dataclasses.replace(one, implicit_q=other.implicit_q)
    mixed, one, other = (first_update(SMALL, state, batch, key)[0] for state in (mixed, one, other))
    assert same(mixed.actor, one.actor)
    assert same(mixed.implicit_q, other.implicit_q)


def test_the_verifier_is_the_lower_head_of_the_online_critic():
    state = fresh_state(SMALL, 0)
    policy = SMALL.policy(state)
    assert isinstance(policy, FlowPolicy)
    assert policy.aggregation == "min"
    assert policy.critic is state.implicit_q.critic
    assert IFQL.default_budget == Budget(steps=10, best_of=32)


@pytest.mark.parametrize(
    "fields",
    [{"expectile": 1.0}, {"discount": 1.0}, {"hidden": ()}, {"learning_rate": 0.0}],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        IFQL(**fields)


def test_presets_have_no_aggregation_for_it_is_always_the_minimum():
    assert len(IFQL.presets) == 8
    assert IFQL.presets["antmaze-giant-navigate"] == {"discount": 0.995}


# What theory says ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone() -> Any:
    """Trained where the rare mode pays 1 and the other 0."""
    (state,) = learn(LEARNING, mode_bandit(1.0), updates=UPDATES, batch_size=256)
    return LEARNING.policy(state)


def test_the_flow_clones_both_modes_and_one_step_their_mean(clone):
    """However the modes are paid. The velocity at t = 0 is E[x1] - x0: one step lands on E[x1]."""
    actions = draw(clone, 10)
    true = MODES.draw(np.random.default_rng(9), len(actions))
    energy = probes.energy_distance(actions, true)
    print(MODES.shares(actions), MODES.astray(actions), energy)
    np.testing.assert_allclose(MODES.shares(actions), MODES.weights, atol=0.06)
    assert MODES.astray(actions) < 0.12
    assert energy < 0.03
    off = draw(clone, 1) - MODES.weights @ MODES.centres  # 0.34 away for true draws
    print(off.mean(axis=0), np.abs(off).mean())
    assert np.abs(off.mean(axis=0)).max() < 0.1
    assert np.abs(off).mean() < 0.2


def test_best_of_n_takes_the_better_mode_where_it_was_drawn(clone):
    """The paid mode is missed only if all N draws miss it."""
    missed = MODES.shares(draw(clone, 10))[0]
    for best_of in (2, 32):
        share = MODES.shares(draw(clone, 10, best_of=best_of))[1]
        print(best_of, share, 1 - missed**best_of)
        assert share == pytest.approx(1 - missed**best_of, abs=0.05)


def test_two_steps_have_implicit_values_and_best_of_n_goes_right():
    dataset, _ = probes.two_step(np.random.default_rng(0))
    (state,) = learn(LEARNING, dataset, updates=UPDATES, batch_size=256)
    policy = LEARNING.policy(state)
    second = scipy.stats.expectile(np.array([-1.0, 1.0]), alpha=0.9)
    exact = {(0, -1): 0.5, (0, 1): LEARNING.discount * second, (1, -1): -1.0, (1, 1): 1.0}
    for (state, side), value in exact.items():
        found = scores(policy, state, side)
        print(state, side, value, found.mean(), found.std())
        assert found.mean() == pytest.approx(value, abs=0.12)
    for state in (0, 1):
        one, best = (draw(policy, 10, best_of=n, state=state)[:, 0] > 0 for n in (1, 32))
        print(state, one.mean(), best.mean())
        assert one.mean() == pytest.approx(0.5, abs=0.1)
        assert best.mean() > 0.98
