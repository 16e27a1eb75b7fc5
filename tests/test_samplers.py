"""Samplers and verifiers: shares and costs, what is scored and chosen, against plain loops."""

from __future__ import annotations

import math
from typing import get_args

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from sorl import samplers
from sorl.algorithm import AbstractPolicy, AbstractRenoisingPolicy, AbstractScoredPolicy
from sorl.errors import InputError
from sorl.inference import Strategy, act, consider
from sorl.losses import Aggregation
from sorl.samplers import ROUNDS, shares
from sorl.types import Budget
from sorl.verifiers import OWN, Verifier


def uniform(noise: jax.Array) -> jax.Array:
    """Normal numbers as uniform ones in [-1, 1]."""
    return jax.scipy.special.erf(noise / math.sqrt(2))


class Blind(AbstractPolicy):
    """Draws from the square [-1, 1]² and has no critic."""

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps):
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return uniform(noise)


class Judged(AbstractScoredPolicy):
    """The same, with heads that disagree the more the larger the second entry."""

    aggregation: Aggregation = eqx.field(static=True, default="min")

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps):
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return uniform(noise)

    def values(self, observation, action, *, steps):
        middle = -jnp.abs(action[0] - observation[0]) - 0.01 * steps
        return middle + jnp.asarray([-1.0, 0.0, 1.0]) * jnp.abs(action[1])


class Renoised(AbstractRenoisingPolicy):
    """As `Judged`; a renoised action lies near the one it began as."""

    aggregation: Aggregation = eqx.field(static=True, default="mean")

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps):
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return uniform(noise)

    def renoise(self, observation, action, *, start, steps, key):
        step = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        return jnp.clip(action + 0.4 * (1 - start / steps) * step, -1, 1)

    def values(self, observation, action, *, steps):
        return Judged().values(observation, action, steps=steps)


OBSERVATION = jnp.asarray([0.3, 0.0, 0.0])
KEY = jax.random.key(7)


# Verifiers ---------------------------------------------------------------------------------


def test_verifiers_against_numpy() -> None:
    action = jnp.asarray([0.1, 0.5])
    heads = -0.2 - 0.04 + np.array([-0.5, 0.0, 0.5])
    expected = {
        "own": heads.min(),
        "mean": heads.mean(),
        "min": heads.min(),
        "mean-0.5std": heads.mean() - 0.5 * np.sqrt(((heads - heads.mean()) ** 2).mean()),
        "mean-2.0std": heads.mean() - 2 * heads.std(),
    }
    for text, value in expected.items():
        verifier = Verifier.parse(text)
        assert str(verifier) == text
        score = verifier.score(Judged(), OBSERVATION, action, steps=4)
        assert score == pytest.approx(value, abs=1e-6), text
    assert Verifier.parse("own") == OWN
    assert Verifier.parse("mean-2std") == Verifier("mean", 2.0)
    assert OWN.score(Judged("mean"), OBSERVATION, action, steps=4) == pytest.approx(heads.mean())


@given(st.floats(0, math.inf, exclude_max=True))
def test_a_verifier_is_what_it_is_written_as(pessimism: float) -> None:
    verifier = Verifier("mean", pessimism)
    assert Verifier.parse(str(verifier)) == verifier


@pytest.mark.parametrize("text", ["", "max", "Mean", "mean-", "mean-std", "mean--1std", "min-1std"])
def test_what_is_no_verifier(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Verifier.parse(text)


@pytest.mark.parametrize(
    "fields", [("min", 1.0), ("own", 1.0), ("mean", -1.0), ("mean", math.nan), ("mean", math.inf)]
)
def test_impossible_verifiers(fields: tuple) -> None:
    with pytest.raises(InputError):
        Verifier(*fields)


# Samplers ----------------------------------------------------------------------------------


@given(steps=st.integers(1, 64), best_of=st.integers(1, 40))
def test_spread_shares_candidates_evenly_and_favours_more_steps(steps: int, best_of: int) -> None:
    found = shares(Budget(steps, best_of))
    assert sum(found.values()) == best_of
    assert min(found.values()) >= 1
    assert max(found.values()) - min(found.values()) <= 1
    assert list(found.values()) == sorted(found.values())
    numbers = list(found)
    assert numbers == sorted(numbers)
    assert numbers[-1] == steps
    assert all(k & (k - 1) == 0 for k in numbers[:-1])
    assert sum(k * count for k, count in found.items()) <= steps * best_of
    if best_of >= steps.bit_length() + 1:
        assert numbers[0] == 1


def test_shares_of_a_usual_budget() -> None:
    assert shares(Budget(8, 8)) == {1: 2, 2: 2, 4: 2, 8: 2}
    assert shares(Budget(8, 6)) == {1: 1, 2: 1, 4: 2, 8: 2}
    assert shares(Budget(8, 2)) == {4: 1, 8: 1}
    assert shares(Budget(1, 5)) == {1: 5}
    assert shares(Budget(6, 4)) == {1: 1, 2: 1, 4: 1, 6: 1}


@pytest.mark.parametrize("sampler", ["independent", "spread", "renoise"])
@pytest.mark.parametrize("best_of", [1, 2, 3, 5, 8])
def test_every_candidate_is_scored_as_it_was_drawn_and_the_best_acts(
    sampler: samplers.Sampler, best_of: int
) -> None:
    budget, strategy = Budget(4, best_of), Strategy(sampler, Verifier.parse("mean-0.5std"))
    policy = Renoised()
    found = consider(policy, OBSERVATION, budget=budget, strategy=strategy, key=KEY).candidates
    assert found.actions.shape == (best_of, 2)
    assert len(np.unique(np.asarray(found.actions), axis=0)) == best_of, "draws differ"
    for action, score, steps in zip(*found, strict=True):
        values = np.asarray(policy.values(OBSERVATION, action, steps=int(steps)))
        assert score == pytest.approx(values.mean() - 0.5 * values.std(), abs=1e-5)
    chosen = act(policy, OBSERVATION, budget=budget, strategy=strategy, key=KEY)
    np.testing.assert_array_equal(chosen, found.actions[int(np.argmax(found.scores))])
    expected = shares(budget) if sampler == "spread" else {4: best_of}
    assert dict(zip(*np.unique(np.asarray(found.steps), return_counts=True), strict=True)) == (
        expected
    )


def test_independent_draws_are_those_of_one_key_each() -> None:
    found = consider(Judged(), OBSERVATION, budget=Budget(4, 3), key=KEY).candidates
    for action, key in zip(found.actions, jax.random.split(KEY, 3), strict=True):
        np.testing.assert_array_equal(action, Judged().sample(OBSERVATION, steps=4, key=key))


@pytest.mark.parametrize("best_of", [2, 5, 8, 11])
def test_each_round_of_renoising_starts_from_the_best_so_far(best_of: int) -> None:
    budget, strategy = Budget(4, best_of), Strategy("renoise")
    found = consider(Renoised(), OBSERVATION, budget=budget, strategy=strategy, key=KEY).candidates
    actions, scores = np.asarray(found.actions), np.asarray(found.scores)
    sizes = [len(part) for part in np.array_split(np.arange(best_of), ROUNDS) if len(part)]
    done = sizes[0]
    for size in sizes[1:]:
        best = actions[:done][np.argmax(scores[:done])]
        moved = np.abs(actions[done : done + size] - best)
        assert (moved <= 0.2 + 1e-6).all(), "half of the way back moves by at most 0.2"
        done += size
    assert done == best_of


def test_renoising_finds_better_actions_than_as_many_independent_draws() -> None:
    keys = jax.random.split(KEY, 200)

    def best(sampler: samplers.Sampler) -> float:
        def one(key):
            strategy = Strategy(sampler, Verifier("mean"))
            found = consider(
                Renoised(), OBSERVATION, budget=Budget(4, 16), strategy=strategy, key=key
            )
            return jnp.max(found.candidates.scores)

        return float(jnp.mean(jax.vmap(one)(keys)))

    assert best("renoise") > best("independent") + 0.01


@pytest.mark.parametrize("sampler", ["independent", "spread", "renoise"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_equals_one_by_one(sampler: samplers.Sampler, batch: int) -> None:
    observations = jnp.asarray(np.random.default_rng(batch).normal(size=(batch, 3)), jnp.float32)
    keys = jax.random.split(KEY, batch)
    strategy = Strategy(sampler)

    def one(observation, key):
        return act(Renoised(), observation, budget=Budget(4, 6), strategy=strategy, key=key)

    together = jax.vmap(one)(observations, keys)
    for observation, key, action in zip(observations, keys, together, strict=True):
        np.testing.assert_allclose(action, one(observation, key), atol=1e-6)


def test_what_a_policy_cannot_do_is_refused() -> None:
    def refused(
        policy: AbstractPolicy, budget: Budget, sampler: samplers.Sampler, expected: str
    ) -> None:
        with pytest.raises(InputError, match=expected):
            act(policy, OBSERVATION, budget=budget, strategy=Strategy(sampler), key=KEY)

    refused(Judged(), Budget(4, 2), "renoise", "Judged cannot take its candidates back")
    refused(Renoised(), Budget(1, 2), "renoise", "1 has no half: use an even number")
    refused(Renoised(), Budget(3, 2), "renoise", "3 has no half")
    refused(Blind(), Budget(4, 2), "spread", "no critic to choose with")
    # One candidate is one draw, whatever the sampler.
    for policy in (Blind(), Judged(), Renoised()):
        for sampler in get_args(samplers.Sampler):
            action = act(
                policy, OBSERVATION, budget=Budget(3, 1), strategy=Strategy(sampler), key=KEY
            )
            np.testing.assert_array_equal(
                action, policy.sample(OBSERVATION, steps=3, key=jax.random.split(KEY, 1)[0])
            )
