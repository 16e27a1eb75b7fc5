"""Evaluation: scores that depend on nothing but what they should, checked against a plain loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float, PRNGKeyArray

from sorl import inference
from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.data.names import EnvironmentName
from sorl.environments import make_environment
from sorl.errors import InputError, WorkerError
from sorl.evaluation import Evaluation, Evaluator, evaluate, rollout_frames
from sorl.inference import USUAL, Strategy
from sorl.losses import Aggregation
from sorl.rollouts import LANES, GroupActor, episode_seed
from sorl.types import Budget, Member
from sorl.verifiers import Verifier

REACH = "tiny_environments:Reach-v0"
BUDGETS = [Budget(1, 1), Budget(2, 3)]
MEMBERS = [Member(0, 0), Member(0, 1), Member(0, 2)]
TRACES: list[int] = []


class Homing(AbstractScoredPolicy):
    """Heads for the origin, more or less, by a random network's correction."""

    network: eqx.nn.MLP
    critic: eqx.nn.MLP
    gain: Float[Array, ""]
    aggregation: Aggregation = eqx.field(static=True, default="mean")

    def __init__(
        self, key: PRNGKeyArray, observation_size: int = 3, action_size: int = 2, width: int = 16
    ):
        keys = jax.random.split(key, 3)
        both = observation_size + action_size
        self.network = eqx.nn.MLP(both, action_size, width, 2, key=keys[0])
        self.critic = eqx.nn.MLP(both, "scalar", width, 2, key=keys[1])
        self.gain = jax.random.uniform(keys[2], (), minval=-0.5, maxval=2.0)

    def check_steps(self, steps: int) -> None:
        if steps > 8:
            raise InputError(f"{steps} steps are too many.")

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (int(self.network.out_size),)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        TRACES.append(steps)
        x = noise
        for _ in range(steps):
            x = x + self.network(jnp.concatenate([observation, x])) / steps
        return jnp.clip(0.3 * x - self.gain * observation[: x.size], -1, 1)

    def values(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " heads"]:
        value = self.critic(jnp.concatenate([observation, action]))
        return jnp.stack([value, value - 2 * jnp.abs(action[0])])


class Blind(AbstractPolicy):
    """A policy without a critic, whose actions are its one parameter."""

    action: Float[Array, " action_size"]

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return ()

    def from_noise(
        self, observation: Float[Array, " observation_size"], noise: Float[Array, ""], *, steps: int
    ) -> Float[Array, " action_size"]:
        return self.action


def stacked(count: int, **sizes: int) -> Homing:
    return eqx.filter_vmap(lambda key: Homing(key, **sizes))(
        jax.random.split(jax.random.key(0), count)
    )


def one(policies: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, policies)


def scores(rows: Sequence[Evaluation]) -> dict[tuple[Member, Budget], tuple[float, ...]]:
    return {(row.member, row.budget): (row.success, row.episode_return, row.length) for row in rows}


@functools.cache
def homing(members: int) -> tuple[Homing, list[Homing]]:
    policies = stacked(members)
    return policies, [one(policies, index) for index in range(members)]


@eqx.filter_jit
def act_batch(policies: Homing, observations: Any, key_data: Any, budget: Budget) -> Array:
    def act(policy: Homing, rows: Array, data: Array) -> Array:
        return jax.vmap(
            lambda o, d: inference.act(policy, o, budget=budget, key=jax.random.wrap_key_data(d))
        )(rows, data)

    return eqx.filter_vmap(act)(policies, jnp.asarray(observations), jnp.asarray(key_data))


@eqx.filter_jit
def draw(policy: Homing, observation: Any, key: Any, index: Any, budget: Budget) -> Array:
    key = jax.random.split(key, budget.best_of)[jnp.asarray(index)]
    return policy.sample(jnp.asarray(observation), steps=budget.steps, key=key)


@eqx.filter_jit
def judge(policy: Homing, observation: Any, action: Any, steps: int) -> Array:
    return policy.score(jnp.asarray(observation), jnp.asarray(action), steps=steps)


@eqx.filter_jit
def act_alone(
    policy: Homing, observation: Array, key: PRNGKeyArray, budget: Budget, strategy: Strategy
) -> Array:
    return inference.act(policy, observation, budget=budget, strategy=strategy, key=key)


@settings(deadline=None, max_examples=10)
@given(
    members=st.integers(1, 3),
    batch=st.integers(1, 9),
    budget=st.builds(Budget, st.sampled_from([1, 2]), st.sampled_from([1, 2, 5])),
    seed=st.integers(0, 2**31),
)
def test_batched_best_of_equals_one_observation_at_a_time(
    members: int, batch: int, budget: Budget, seed: int
) -> None:
    numbers = np.random.default_rng(seed)
    observations = numbers.normal(size=(members, batch, 3)).astype(np.float32)
    key_data = numbers.integers(2**32, size=(members, batch, 2), dtype=np.uint32)
    policies, alone = homing(members)
    batched = np.asarray(act_batch(policies, observations, key_data, budget))
    for m, b in np.ndindex(members, batch):
        key = jax.random.wrap_key_data(jnp.asarray(key_data[m, b]))
        drawn = [
            np.asarray(draw(alone[m], observations[m, b], key, np.asarray(index), budget))
            for index in range(budget.best_of)
        ]
        values = [float(judge(alone[m], observations[m, b], x, budget.steps)) for x in drawn]
        distances = [float(np.abs(batched[m, b] - action).max()) for action in drawn]
        chosen = int(np.argmin(distances))
        assert distances[chosen] < 1e-5
        # A tie within rounding may be decided either way.
        assert values[chosen] >= max(values) - 1e-5


def by_hand(
    policy: Homing,
    member: Member,
    budget: Budget,
    episode: int,
    seed: int,
    strategy: Strategy = USUAL,
) -> Any:
    """One episode in this process, one observation at a time."""
    environment = make_environment(REACH)
    random: Any = np.random
    before = random.get_bit_generator()
    start = episode_seed(seed, member.task, episode)
    random.set_bit_generator(np.random.PCG64(start))
    observation, _ = environment.reset(seed=start)
    total, length, done, info = 0.0, 0, False, {}
    while not done:
        key = jax.random.key(seed)
        for number in (member.task, member.seed, episode, length):
            key = jax.random.fold_in(key, number)
        action = act_alone(policy, jnp.asarray(observation, jnp.float32), key, budget, strategy)
        observation, reward, terminated, truncated, info = environment.step(np.asarray(action))
        total, length, done = total + float(reward), length + 1, terminated or truncated
    random.set_bit_generator(before)
    return float(info["success"]), total, length


def test_scores_are_those_of_a_plain_loop() -> None:
    policies = stacked(3)
    rows = evaluate(
        policies, MEMBERS, REACH, budgets=BUDGETS, episodes=5, workers=2, slots=7, seed=3
    )
    assert [(row.member, row.budget) for row in rows] == [(m, b) for m in MEMBERS for b in BUDGETS]
    assert 0 < np.mean([row.success for row in rows]) < 1
    for row in rows:
        policy = one(policies, MEMBERS.index(row.member))
        expected = np.mean([by_hand(policy, row.member, row.budget, e, 3) for e in range(5)], 0)
        np.testing.assert_allclose((row.success, row.episode_return, row.length), expected)
        assert row.latency_ms > 0
        assert row.act_ms > 0


def test_a_strategy_reaches_every_decision() -> None:
    policies, member, budget = stacked(1), MEMBERS[0], Budget(2, 5)
    strategy = Strategy("spread", Verifier("min"))
    key, nowhere = jax.random.key(0), jnp.zeros(3)
    usual, other = (
        np.asarray(act_alone(one(policies, 0), nowhere, key, budget, how))
        for how in (USUAL, strategy)
    )
    assert not np.array_equal(usual, other), "on this problem the two differ"
    settings: Any = {"budgets": [budget], "episodes": 3, "workers": 1, "seed": 3}
    [row] = evaluate(policies, [member], REACH, strategy=strategy, **settings)
    policy = one(policies, 0)
    expected = np.mean([by_hand(policy, member, budget, e, 3, strategy) for e in range(3)], 0)
    np.testing.assert_allclose((row.success, row.episode_return, row.length), expected)
    with pytest.raises(InputError, match="Homing cannot take its candidates back"):
        evaluate(policies, [member], REACH, strategy=Strategy("renoise"), **settings)


def test_scores_do_not_depend_on_workers_slots_members_or_budgets() -> None:
    policies = stacked(3)

    def run(**how: Any) -> dict[Any, Any]:
        return scores(
            evaluate(policies, MEMBERS, REACH, budgets=BUDGETS, episodes=2 * LANES + 1, **how)
        )

    expected = run(workers=1, slots=1)
    assert len(set(expected.values())) > 1
    for workers, slots in ((2, 2), (1, 5), (2, 40), (2, None)):
        assert run(workers=workers, slots=slots) == expected, (workers, slots)
    alone = evaluate(
        one(policies, slice(1, 2)), MEMBERS[1:2], REACH, budgets=BUDGETS[1:], episodes=17, workers=1
    )
    assert scores(alone).items() <= expected.items()
    assert run(workers=1, seed=1) != expected


@pytest.mark.parametrize("budget", BUDGETS)
def test_an_action_does_not_depend_on_its_lane_or_its_neighbours(budget: Budget) -> None:
    policy = one(stacked(1, observation_size=28, action_size=5, width=256), 0)
    actor = GroupActor(policy, Member(2, 1), budget, seed=4)
    numbers = np.random.default_rng(0)
    observations = numbers.normal(size=(LANES, 28))
    clock = numbers.integers(200, size=(LANES, 2))
    expected = actor(observations, clock)
    assert len(np.unique(expected[:, 0])) == LANES
    order = numbers.permutation(LANES)
    np.testing.assert_array_equal(actor(observations[order], clock[order]), expected[order])
    for lane in range(LANES):
        alone = actor(observations[lane : lane + 1], clock[lane : lane + 1])
        np.testing.assert_array_equal(alone[0], expected[lane])


def test_a_second_evaluation_neither_starts_workers_nor_compiles() -> None:
    policies = stacked(2)
    seen: list[tuple[int, int]] = []
    with Evaluator(REACH, workers=1, slots=4) as evaluator:
        first = evaluator.evaluate(policies, MEMBERS[:2], budgets=BUDGETS, episodes=3)
        vector = evaluator._vector
        traces = len(TRACES)
        second = evaluator.evaluate(
            policies,
            MEMBERS[:2],
            budgets=BUDGETS,
            episodes=3,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert evaluator._vector is vector
        assert len(TRACES) == traces
    assert scores(first) == scores(second)
    assert seen == [(i + 1, 12) for i in range(12)]


def test_budgets_are_checked_before_any_worker_starts() -> None:
    policies = Blind(jnp.zeros((1, 2)))
    nowhere = "no_such_module:Nowhere-v0"
    with pytest.raises(InputError, match="no critic"):
        evaluate(policies, MEMBERS[:1], nowhere, budgets=[Budget(1, 1), Budget(1, 2)])
    with pytest.raises(InputError, match="too many"):
        evaluate(stacked(1), MEMBERS[:1], nowhere, budgets=[Budget(16, 1)])


def test_bad_input_gets_a_sentence() -> None:
    policies = stacked(1)
    with pytest.raises(InputError, match="2 are named"):
        evaluate(policies, MEMBERS[:2], REACH, budgets=BUDGETS)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(policies, MEMBERS[:1], REACH, budgets=[])
    with pytest.raises(InputError, match="0 episodes"):
        evaluate(policies, MEMBERS[:1], REACH, budgets=BUDGETS, episodes=0)
    with pytest.raises(InputError, match="seed 4294967296"):
        evaluate(policies, MEMBERS[:1], REACH, budgets=BUDGETS, seed=2**32)
    with pytest.raises(InputError, match="workers=0"):
        evaluate(policies, MEMBERS[:1], REACH, budgets=BUDGETS, workers=0)
    with pytest.raises(InputError, match="2 workers cannot share 1 slots"):
        evaluate(policies, MEMBERS[:1], REACH, budgets=BUDGETS, workers=2, slots=1)
    with pytest.raises(InputError, match="observations of 3 numbers"):
        evaluate(stacked(1, observation_size=5), MEMBERS[:1], REACH, budgets=BUDGETS, workers=1)
    with pytest.raises(InputError, match="actions of 1 numbers"):
        evaluate(stacked(1, action_size=1), MEMBERS[:1], REACH, budgets=BUDGETS, workers=1)
    diverged = Blind(jnp.full((1, 2), jnp.nan))
    with pytest.raises(InputError, match="task0-seed0 gave an action that is not finite"):
        evaluate(diverged, MEMBERS[:1], REACH, budgets=[Budget(1, 1)], workers=1)


@pytest.mark.parametrize("name", ["ReachNan-v0", "ReachInfinity-v0", "ReachFar-v0"])
def test_an_observation_that_is_not_finite_is_the_environments_fault(name: str) -> None:
    still = Blind(jnp.zeros((1, 2)))
    environment = f"tiny_environments:{name}"
    with pytest.raises(InputError, match=r"environment of task0-seed0 .* at step 3 of episode 0"):
        evaluate(still, MEMBERS[:1], environment, budgets=[Budget(1, 1)], episodes=1, workers=1)


@pytest.mark.parametrize(("name", "told"), [("Push", True), ("Silent", False)])
def test_whether_success_was_told_at_all(name: str, told: bool) -> None:
    still = Blind(jnp.zeros((1, 1)))
    environment = f"gym:tiny_environments:{name}-v0"
    how: Any = {"budgets": [Budget(1, 1)], "episodes": 2, "workers": 1}
    [found] = evaluate(still, MEMBERS[:1], environment, **how)
    assert (found.success, found.success_told) == (0, told)
    assert "success_told" not in found.row()


def test_a_dead_worker_ends_the_evaluation_and_the_evaluator_recovers() -> None:
    death = "tiny_environments:ReachDeath-v0"
    with Evaluator(death, workers=2, slots=2) as evaluator:
        for _ in range(2):
            with pytest.raises(WorkerError, match="SIGKILL"):
                evaluator.evaluate(stacked(1), MEMBERS[:1], budgets=[Budget(1, 1)], episodes=2)
            assert evaluator._vector is None


def test_a_row_has_the_columns_of_evaluations_csv() -> None:
    row = Evaluation(Member(2, 1), Budget(4, 8), 50, 0.5, -20.0, 100.0, 1.5, 0.25, 8.0).row()
    assert ",".join(row) == (
        "task,seed,budget,steps,best_of,episodes,success,return,length,latency_ms,act_ms"
    )
    assert list(row.values()) == [2, 1, "4x8", 4, 8, 50, 0.5, -20.0, 100.0, 1.5, 0.25]


def test_pictures_show_the_evaluated_episode_or_a_sentence_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, member, budget = one(stacked(1), 0), MEMBERS[0], Budget(2, 3)
    frames = rollout_frames(policy, member, REACH, budget, seed=3, episode=1, every=5)
    assert frames is not None
    _, _, length = by_hand(policy, member, budget, 1, 3)
    shown = [frame[0, 0, 0] for frame in frames]
    assert shown == sorted({*range(0, length, 5), length})

    few = rollout_frames(policy, member, REACH, budget, seed=3, episode=1, most=4)
    assert few is not None
    shown = [frame[0, 0, 0] for frame in few]
    assert length > 4
    assert len(few) <= 4
    assert (shown[0], shown[-1]) == (0, length)

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    problems: list[str] = []
    broken = "tiny_environments:ReachError-v0"
    assert rollout_frames(policy, member, broken, budget, on_problem=problems.append) is None
    assert len(problems) == 1
    assert "no picture today" in problems[0]


def test_tasks_of_a_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = EnvironmentName.parse("cube-single-play-singletask-v0")
    members = [Member(2, 0), Member(3, 0)]
    policies = stacked(2, observation_size=28, action_size=5)
    act = GroupActor.__call__
    seen: dict[tuple[Member, int, int], bytes] = {}

    def spy(self: GroupActor, observations: np.ndarray, clock: np.ndarray) -> np.ndarray:
        for observation, (episode, step) in zip(observations, clock, strict=True):
            seen[self.member, int(episode), int(step)] = observation.tobytes()
        return act(self, observations, clock)

    monkeypatch.setattr(GroupActor, "__call__", spy)

    def run(workers: int, slots: int) -> tuple[list[Evaluation], dict[Any, bytes]]:
        seen.clear()
        rows = evaluate(
            policies,
            members,
            environment,
            budgets=[Budget(1, 1)],
            episodes=2,
            workers=workers,
            slots=slots,
            max_episode_steps=10,
        )
        return rows, dict(seen)

    rows, observations = run(2, 2)
    again, same = run(1, 1)
    assert scores(rows) == scores(again)
    # The scores below are constants: what tells one episode from another is what it shows.
    assert same == observations
    assert len(observations) == len(set(observations.values())) == 2 * 2 * 10
    assert [(row.success, row.episode_return, row.length) for row in rows] == [(0, -10, 10)] * 2
