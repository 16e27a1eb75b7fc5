"""Branches: played again exactly, candidates in their place, noise of the tails shared."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import gymnasium
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy.stats import spearmanr

from sorl import branches
from sorl.algorithm import AbstractScoredPolicy
from sorl.branches import branch, rank_correlation
from sorl.environments import make_environment
from sorl.errors import InputError
from sorl.losses import Aggregation
from sorl.types import Budget, Member

ENVIRONMENT = "tiny_environments:Sum-v0"
MEMBER = Member(0, 5)


class Steady(AbstractScoredPolicy):
    """Acts near 0.1, and values an action by its first entry."""

    centre: jax.Array
    aggregation: Aggregation = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return jnp.clip(self.centre + 0.3 * noise, -1, 1)

    def values(self, observation, action, *, steps):
        return jnp.stack([action[0], action[0] + 1.0])


POLICY = Steady(centre=jnp.full(2, 0.1), aggregation="mean")


def roll(states: int, tails: int, **more: Any) -> branches.Branches:
    return branch(
        POLICY, MEMBER, ENVIRONMENT, budget=Budget(1, 4), states=states, tails=tails, **more
    )


def test_every_candidate_gets_its_own_return_and_tails_share_their_noise() -> None:
    """In this environment the return is the sum of the actions' first entries."""
    done = []
    found = roll(3, 2, seed=1, on_episode=lambda *progress: done.append(progress))
    assert found.actions.shape == (3, 4, 2)
    assert found.values.shape == (3, 4, 2)
    assert found.returns.shape == found.success.shape == (3, 4, 2)
    np.testing.assert_allclose(found.values[..., 0], found.actions[..., 0])
    np.testing.assert_allclose(found.values[..., 1], found.actions[..., 0] + 1, atol=1e-6)
    # What is left of the return is the episode before and after, the same for all candidates.
    rest = found.returns - found.actions[..., :1]
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:, :1], rest.shape), atol=1e-5)
    assert np.abs(rest[:, 0, 0] - rest[:, 0, 1]).max() > 1e-3, "tails differ in their noise"
    assert (rank_correlation(found.values.mean(-1), found.returns.mean(-1)) > 0.99).all()
    assert done[-1] == (3 * (1 + 4 * 2), 3 * (1 + 4 * 2))


class Timed(Steady):
    """Values an action by its first entry times a tenth of the steps before it."""

    def values(self, observation, action, *, steps):
        return observation[-1:] * action[:1]


def test_a_candidate_takes_the_place_of_the_action_at_the_step_that_it_was_valued_at() -> None:
    """In this environment an action earns its first entry times the steps before it."""
    found = branch(
        Timed(centre=jnp.full(2, 0.1), aggregation="mean"),
        MEMBER,
        "tiny_environments:WeightedSum-v0",
        budget=Budget(1, 4),
        states=3,
        tails=1,
        seed=1,
    )
    values, returns = found.values[..., 0], found.returns[..., 0]
    assert (np.ptp(values, axis=1) > 0.01).any(), "all states are first ones"
    expected = 10 * (values - values[:, :1])
    np.testing.assert_allclose(returns - returns[:, :1], expected, atol=1e-4)


def test_the_same_seed_gives_the_same_branches_whatever_the_workers() -> None:
    for one, other in zip(roll(2, 1, seed=4), roll(2, 1, seed=4, workers=2), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(roll(2, 1, seed=4).actions, roll(2, 1, seed=5).actions)


def test_an_environment_that_cannot_be_played_again_is_refused() -> None:
    with pytest.raises(InputError, match="does not follow from its seed"):
        branch(
            POLICY,
            MEMBER,
            "tiny_environments:Moody-v0",
            budget=Budget(1, 2),
            states=4,
            tails=1,
        )


@pytest.mark.parametrize("change", [{"states": 0}, {"tails": 0}, {"seed": -1}, {"seed": 2**32}])
def test_impossible_numbers_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="are not possible: give at least 1 state"):
        roll(**{"states": 1, "tails": 1, **change})
    with pytest.raises(InputError, match="2 candidates"):
        branch(POLICY, MEMBER, ENVIRONMENT, budget=Budget(1, 1), states=1, tails=1)


@given(seed=st.integers(0, 2**16), candidates=st.integers(2, 9), ties=st.booleans())
def test_rank_correlation_is_spearmans(seed: int, candidates: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    scores, returns = random.normal(size=(2, 3, candidates))
    if ties:
        scores, returns = np.round(scores), np.round(returns)
    found = rank_correlation(scores, returns)
    for value, x, y in zip(found, scores, returns, strict=True):
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(x, y)[0])


def test_the_sum_environment_is_what_the_tests_take_it_for() -> None:
    environment: gymnasium.Env = make_environment(ENVIRONMENT)
    environment.reset(seed=3)
    total, done = 0.0, False
    actions = iter(np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32))
    played = []
    while not done:
        played.append(next(actions))
        _, reward, terminated, truncated, _ = environment.step(played[-1])
        total, done = total + float(reward), terminated or truncated
    assert total == pytest.approx(sum(action[0] for action in played))
