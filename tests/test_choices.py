"""Choices among candidates, and adaptive spending, against plain loops."""

from __future__ import annotations

import math

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from choices_by_hand import by_hand
from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.choices import Choice
from sorl.errors import InputError
from sorl.inference import Adaptive, Strategy, act, act_and_count, consider, first_of
from sorl.losses import Aggregation
from sorl.types import Budget

KEY = jax.random.key(3)
OBSERVATION = jnp.asarray([0.3, 0.0, 0.0])
RULES = ("best", "central", "typical-2", "typical-5", "softmax-1")


class Blind(AbstractPolicy):
    """Standard normal actions, clipped; no critic."""

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return jnp.clip(noise / 2, -1, 1)


class Eager(AbstractScoredPolicy):
    """The same with a critic whose opinion counts for more where the observation is larger."""

    aggregation: Aggregation = eqx.field(static=True, default="mean")

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return Blind().from_noise(observation, noise, steps=steps)

    def values(self, observation, action, *, steps):
        return jnp.stack([action[0], action[0]]) * observation[0]


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 9),
    rule=st.sampled_from(["best", "central", "typical"]),
    kept=st.integers(1, 12),
    crowded=st.booleans(),
)
def test_a_choice_is_that_of_a_plain_loop(
    seed: int, count: int, rule: str, kept: int, crowded: bool
) -> None:
    random = np.random.default_rng(seed)
    actions = random.normal(size=(count, 3)).astype(np.float32)
    scores = random.integers(3, size=count).astype(np.float32) if crowded else actions[:, 0] ** 2
    choice = Choice.parse(f"{rule}-{kept}" if rule == "typical" else rule)
    chosen = int(choice.choose(jnp.asarray(actions), jnp.asarray(scores), key=KEY))
    assert chosen in by_hand(rule, choice.parameter, actions, scores)


def test_ties_go_to_the_first() -> None:
    actions = jnp.zeros((4, 2))
    scores = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    for text, expected in {"best": 1, "central": 0, "typical-2": 1, "typical-1": 1}.items():
        assert int(Choice.parse(text).choose(actions, scores, key=KEY)) == expected


def test_central_is_in_the_crowd_whatever_the_scores() -> None:
    crowd = np.random.default_rng(0).normal(size=(6, 2)) * 0.01
    actions = jnp.asarray(np.concatenate([[[1.0, 1.0]], crowd, [[-1.0, 0.9]]]), jnp.float32)
    scores = jnp.asarray([9.0, *[0.0] * 6, 5.0])
    assert 1 <= int(Choice("central").choose(actions, scores, key=KEY)) <= 6
    assert 1 <= int(Choice("typical", 3).choose(actions, scores, key=KEY)) <= 6
    assert int(Choice("best").choose(actions, scores, key=KEY)) == 0


def test_softmax_draws_by_its_probabilities() -> None:
    actions = jnp.zeros((3, 1))
    scores = np.array([0.0, 1.0, 3.0])
    keys = jax.random.split(KEY, 20_000)
    for temperature in (0.5, 2.0):
        choice = Choice("softmax", temperature)
        chosen = jax.vmap(lambda k, c=choice: c.choose(actions, jnp.asarray(scores), key=k))(keys)
        weights = np.exp(scores / (temperature * scores.std()))
        shares = np.bincount(np.asarray(chosen), minlength=3) / len(keys)
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.015)
    cold = jax.vmap(lambda k: Choice("softmax", 1e-3).choose(actions, jnp.asarray(scores), key=k))(
        keys[:50]
    )
    assert (np.asarray(cold) == 2).all()
    equal = jax.vmap(lambda k: Choice("softmax", 1.0).choose(actions, jnp.ones(3), key=k))(keys)
    np.testing.assert_allclose(np.bincount(np.asarray(equal)) / len(keys), 1 / 3, atol=0.015)


@given(
    st.one_of(
        st.sampled_from([Choice("own"), Choice("best"), Choice("central")]),
        st.builds(Choice, st.just("typical"), st.integers(1, 10**6)),
        st.builds(
            Choice, st.just("softmax"), st.floats(0, math.inf, exclude_min=True, exclude_max=True)
        ),
    )
)
def test_a_choice_is_written_as_it_is_read(choice: Choice) -> None:
    assert Choice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    "text",
    [
        "",
        *("worst", "best-1", "central-0.5", "own-2"),
        *("typical", "typical-0", "typical-1.5", "typical-nan", "typical-2-", "typical-1e999"),
        *("softmax-0", "softmax--1", "softmax-inf", "softmax-1e"),
    ],
)
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="Choice"):
        Choice.parse(text)


@pytest.mark.parametrize("text", RULES)
def test_the_action_is_the_chosen_candidate(text: str) -> None:
    strategy = Strategy(choice=Choice.parse(text))
    found = consider(Eager(), OBSERVATION, budget=Budget(2, 7), strategy=strategy, key=KEY)
    action = act(Eager(), OBSERVATION, budget=Budget(2, 7), strategy=strategy, key=KEY)
    np.testing.assert_array_equal(action, found.candidates.actions[int(found.chosen)])
    expected = strategy.choice.choose(*found.candidates[:2], key=KEY)
    assert int(found.chosen) == int(expected)


def test_central_needs_no_critic_and_the_others_do() -> None:
    central = Strategy(choice=Choice("central"))
    found = consider(Blind(), OBSERVATION, budget=Budget(1, 8), strategy=central, key=KEY)
    action = act(Blind(), OBSERVATION, budget=Budget(1, 8), strategy=central, key=KEY)
    actions = np.asarray(found.candidates.actions)
    assert int(found.chosen) in by_hand("central", 0, actions, np.zeros(8))
    np.testing.assert_array_equal(action, actions[int(found.chosen)])
    for text in ("own", "best", "typical-2", "softmax-1"):
        strategy = Strategy(choice=Choice.parse(text))
        with pytest.raises(InputError, match=r"no critic .* central, which needs none"):
            act(Blind(), OBSERVATION, budget=Budget(1, 8), strategy=strategy, key=KEY)


# Adaptive spending -------------------------------------------------------------------------


def spent(size: float, threshold: float, best_of: int, rule: str) -> tuple[jax.Array, int]:
    observation = jnp.asarray([size, 0.0, 0.0])
    strategy = Strategy(choice=Choice.parse(rule), adaptive=Adaptive(threshold))
    action, count = act_and_count(
        Eager(), observation, budget=Budget(1, best_of), strategy=strategy, key=KEY
    )
    return action, int(count)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("best_of", [3, 4, 8, 9, 16])
def test_few_candidates_where_scores_hardly_differ_else_all(rule: str, best_of: int) -> None:
    few_key, rest_key = jax.random.split(KEY)
    budget = Budget(1, first_of(best_of))
    strategy = Strategy(choice=Choice.parse(rule))
    first = consider(Eager(), OBSERVATION, budget=budget, strategy=strategy, key=few_key).candidates
    rest = consider(
        Eager(),
        OBSERVATION,
        budget=Budget(1, best_of - first_of(best_of)),
        strategy=strategy,
        key=rest_key,
    ).candidates
    spread = float(np.std(np.asarray(first.scores)))
    for threshold, drawn in ((spread * 1.01, [first]), (spread * 0.99, [first, rest])):
        action, count = spent(0.3, threshold, best_of, rule)
        actions = jnp.concatenate([part.actions for part in drawn])
        scores = jnp.concatenate([part.scores for part in drawn])
        chosen = strategy.choice.choose(actions, scores, key=KEY)
        np.testing.assert_array_equal(action, actions[int(chosen)])
        assert count == len(actions) <= best_of


def test_adaptive_spending_never_exceeds_the_budget_and_saves_real_work() -> None:
    assert [spent(1.0, 0.0, n, "best")[1] for n in (1, 2, 3, 32)] == [1, 2, 3, 32]
    assert [spent(1.0, 1e9, n, "best")[1] for n in (1, 2, 3, 32)] == [1, 2, 2, 8]

    def decide(observation):
        strategy = Strategy(adaptive=Adaptive(0.1))
        return act(Eager(), observation, budget=Budget(1, 8), strategy=strategy, key=KEY)

    alone = str(jax.make_jaxpr(decide)(OBSERVATION))
    assert "cond[" in alone, "one observation takes a branch"


def test_rows_of_a_batch_count_for_themselves() -> None:
    observations = jnp.asarray([[0.0, 0, 0], [5.0, 0, 0], [0.0, 0, 0]])
    keys = jax.random.split(KEY, 3)
    strategy = Strategy(adaptive=Adaptive(1e-3))

    def one(observation, key):
        return act_and_count(Eager(), observation, budget=Budget(1, 8), strategy=strategy, key=key)

    actions, counts = jax.vmap(one)(observations, keys)
    assert counts.tolist() == [2, 8, 2]
    for observation, key, action in zip(observations, keys, actions, strict=True):
        np.testing.assert_allclose(action, one(observation, key)[0], atol=1e-6)


def test_what_adaptive_spending_cannot_do_is_refused() -> None:
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="threshold"):
            Adaptive(threshold)
    for policy, strategy, expected in (
        (Blind(), Strategy(adaptive=Adaptive(1.0)), "no critic"),
        (Blind(), Strategy(choice=Choice("central"), adaptive=Adaptive(1.0)), "no critic"),
        (Eager(), Strategy("spread", adaptive=Adaptive(1.0)), "independent candidates"),
    ):
        with pytest.raises(InputError, match=expected):
            act(policy, OBSERVATION, budget=Budget(1, 8), strategy=strategy, key=KEY)
