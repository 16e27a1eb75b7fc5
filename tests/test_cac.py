"""CAC: both losses against NumPy, and what theory says of it on problems with known answers."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
import one_member
import probes
from sorl import consistency
from sorl.algorithms.cac import CAC, CACPolicy
from sorl.consistency import NoiseLevels
from sorl.errors import InputError
from sorl.inference import act
from sorl.types import Budget

pytestmark = pytest.mark.optimised

ROWS = 5


def tiny(**fields) -> tuple:
    """A small CAC, a state whose targets differ from its networks, and a batch."""
    algorithm = CAC(**{"hidden": (16, 16), "learning_rate": 1e-3, "discount": 0.9, **fields})
    return algorithm, _state(), one_member.batch_of(np.random.default_rng(0), ROWS)


@functools.cache
def _state() -> Any:
    init = jax.jit(lambda key: CAC(hidden=(16, 16)).init(one_member.SPEC, key=key))
    state, other = init(jax.random.key(0)), init(jax.random.key(1))
    return eqx.tree_at(
        lambda s: (s.target_actor, s.td_critic.target_critic),
        state,
        (other.actor, other.td_critic.critic),
    )


def slow_action(network: Any, s: np.ndarray, noise: np.ndarray, count: int = 40) -> np.ndarray:
    """π(s) from its noise [steps, 3], with schedule, scalings and stride written out."""
    steps, top = len(noise), count - 1
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    x = np.zeros(3)
    for i in range(steps):
        n = np.floor(top * (steps - i) / steps + 0.5)
        level = (low + n / top * (high - low)) ** 7
        x = x + (level if i == 0 else np.sqrt(level**2 - 0.002**2)) * noise[i]
        above, size = level - 0.002, np.sqrt(level**2 + 0.25)
        answer = slow.mlp(network.mlp, np.concatenate([s, x / size, [np.log(level) / 4]]))
        x = np.clip(0.25 / (above**2 + 0.25) * x + 0.5 * above / size * answer, -1, 1)
    return x


def noise_of(key: Any, steps: int) -> np.ndarray:
    return np.asarray(jax.random.normal(key, (ROWS, steps, 3)), np.float64)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_q_loss_and_its_gradient_through_all_steps_equal_numpy(rng, steps):
    """The gradient along a random direction, with the normaliser held where it is."""
    cac, state, batch = tiny(sampling_steps=steps, target_aggregation="min")
    key = jax.random.key(5)
    critic, s = state.td_critic.critic, np.asarray(batch.observation, np.float64)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda actor: cac.q_loss(actor, critic, batch.observation, key=key))
    )(state.actor)
    # In NumPy from here on; differences need float64.
    critic, noise = jax.tree.map(np.asarray, critic), noise_of(key, steps)

    def values(actor: Any) -> np.ndarray:
        return np.array(
            [
                slow.q_values(critic, s[i], slow_action(actor, s[i], noise[i])).mean()
                for i in range(ROWS)
            ]
        )

    q = values(state.actor)
    scale = np.abs(q).mean()
    assert float(loss) == pytest.approx(-q.mean() / scale, rel=1e-3)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), state.actor)
    forth, back = (
        jax.tree.map(lambda p, d, h=h: np.asarray(p, np.float64) + h * d, state.actor, direction)
        for h in (1e-6, -1e-6)
    )
    exact = -(values(forth) - values(back)).mean() / 2e-6 / scale
    parts = jax.tree.map(lambda g, d: np.sum(np.asarray(g, np.float64) * d), gradient, direction)
    assert sum(jax.tree.leaves(parts)) == pytest.approx(exact, rel=5e-3, abs=1e-4)


def test_update_equals_numpy_targets_and_one_adam_step_of_each_network():
    cac, state, batch = tiny(q_loss_coef=3.0)
    key = jax.random.key(9)
    new, metrics = jax.jit(lambda s: cac.update(s, batch, jnp.int32(0), key=key))(state)
    next_key, behaviour_key, q_key = jax.random.split(key, 3)

    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    noise = noise_of(next_key, 2)
    critic, errors = state.td_critic, []
    targets = []
    for i in range(ROWS):
        next_action = slow_action(state.target_actor, s2[i], noise[i])
        y = r[i] + 0.9 * m[i] * slow.q_values(critic.target_critic, s2[i], next_action).mean()
        errors.append(np.mean((slow.q_values(critic.critic, s[i], a[i]) - y) ** 2))
        targets.append(y)
    assert metrics["critic/loss"] == pytest.approx(np.mean(errors), rel=1e-3)

    def critic_loss(critic):
        q = critic.batch(batch.observation, batch.action)
        return jnp.mean((q - jnp.asarray(targets, jnp.float32)[:, None]) ** 2)

    moved, _, norm = one_member.first_adam_step(critic_loss, critic.critic, learning_rate=1e-3)
    one_member.assert_same(new.td_critic.critic, moved, atol=3e-5)
    assert metrics["critic/gradient_norm"] == pytest.approx(norm, rel=1e-3)

    def actor_loss(actor):
        behaviour = jnp.mean(
            consistency.consistency_error(
                actor,
                state.target_actor,
                NoiseLevels(40),
                batch.observation,
                batch.action,
                key=behaviour_key,
            )
        )
        # The critic after its step.
        return behaviour + 3 * cac.q_loss(actor, new.td_critic.critic, batch.observation, key=q_key)

    moved, loss, norm = one_member.first_adam_step(actor_loss, state.actor, learning_rate=1e-3)
    one_member.assert_same(new.actor, moved, atol=1e-5)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["actor/consistency_loss"] + 3 * metrics["actor/q_loss"] == pytest.approx(
        loss, rel=1e-3
    )

    for old, online, average in (
        (state.target_actor, new.actor, new.target_actor),
        (critic.target_critic, new.td_critic.critic, new.td_critic.target_critic),
    ):
        expected = jax.tree.map(lambda a, b: 0.995 * a + 0.005 * b, old, online)
        one_member.assert_same(average, expected, atol=1e-6)


def test_the_behaviour_loss_moves_the_actor_alone():
    cac, state, batch = tiny()
    gradient = one_member.gradient_of(
        lambda s: cac.behaviour_loss(s.actor, s.target_actor, batch, key=jax.random.key(0)), state
    )
    assert one_member.all_move(gradient.actor)
    assert one_member.none_moves(gradient.target_actor)
    assert one_member.none_moves(gradient.td_critic)


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_the_policy_draws_and_scores_as_numpy_does(rng, aggregation):
    cac, state, _ = tiny(target_aggregation=aggregation)
    policy = cac.policy(state)
    s = rng.normal(size=4)
    for steps in (1, 2, 7):
        key = jax.random.key(steps)
        action = policy.sample(jnp.asarray(s, jnp.float32), steps=steps, key=key)
        noise = np.asarray(jax.random.normal(key, (steps, 3)), np.float64)
        np.testing.assert_allclose(action, slow_action(state.actor, s, noise), rtol=1e-3, atol=1e-3)
    score = policy.score(jnp.asarray(s, jnp.float32), action, steps=7)
    q = slow.q_values(state.td_critic.critic, s, np.asarray(action, np.float64))
    exact = q.mean() if aggregation == "mean" else q.min()
    assert float(score) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("steps", [0, 4, 40])
def test_more_steps_than_there_are_levels_are_refused(steps):
    cac, state, _ = tiny(noise_levels=4)
    with pytest.raises(InputError, match=f"cannot act in {steps} sampling steps.*from 1 to 3"):
        cac.policy(state).check_steps(steps)
    for fine in (1, 2, 3):
        cac.policy(state).check_steps(fine)


@pytest.mark.parametrize(
    "fields",
    [
        {"q_loss_coef": -1.0},
        {"sampling_steps": 0},
        {"noise_levels": 1},
        {"sampling_steps": 5, "noise_levels": 5},
        {"discount": 1.0},
        {"hidden": (0,)},
        {"learning_rate": 0.0},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        CAC(**fields)


# Known answers -------------------------------------------------------------------------------

DRAWS = 2000

CLONING = CAC(
    q_loss_coef=0.0,
    sampling_steps=1,
    noise_levels=20,
    hidden=(48, 48),
    learning_rate=2e-3,
    target_rate=0.2,
)
IMPROVING = CAC(
    q_loss_coef=10.0,
    noise_levels=20,
    hidden=(32, 32),
    learning_rate=2e-3,
    target_rate=0.02,
    discount=probes.TWO_STEP_DISCOUNT,
)
MODES = probes.Mixture(np.array([[-0.5, 0.3], [0.5, -0.3]]), np.array([0.7, 0.3]), 0.1)


@eqx.filter_jit
def _draw(policy, observation, keys, steps):
    budget = Budget(steps, 1)
    return jax.vmap(lambda key: act(policy, observation, budget=budget, key=key))(keys)


def draw(policy: CACPolicy, steps: int, *, state: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return np.asarray(_draw(policy, jnp.asarray(probes.STATES[state]), keys, steps))


@eqx.filter_jit
def _score(policy, observation, actions):
    return jax.vmap(lambda action: policy.score(observation, action, steps=2))(actions)


def learned(algorithm: CAC, dataset: Any, updates: int) -> CACPolicy:
    return algorithm.policy(one_member.learn(algorithm, dataset, updates=updates))


@pytest.fixture(scope="module")
def two_modes() -> CACPolicy:
    return learned(CLONING, probes.behaviour(MODES, np.random.default_rng(0)), 2000)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_cloning_recovers_two_modes_and_their_weights(two_modes, steps):
    actions = draw(two_modes, steps)
    true = MODES.draw(np.random.default_rng(99), DRAWS)
    energy, astray = probes.energy_distance(actions, true), MODES.astray(actions)
    print(steps, energy, MODES.shares(actions), astray)
    assert energy < 0.05
    assert astray < 0.3
    np.testing.assert_allclose(MODES.shares(actions), MODES.weights, atol=0.1)
    # What the check is worth: one Gaussian of the same moments fails it.
    gaussian = true.mean(axis=0) + true.std(axis=0) * np.random.default_rng(5).normal(
        size=true.shape
    )
    assert probes.energy_distance(gaussian, true) > 0.05
    assert MODES.astray(gaussian) > 0.5


def test_one_step_lands_where_the_way_from_its_noise_ends():
    """Draw by draw: for N(μ, d²) the ways are known, and from noise z they end in μ + d z."""
    policy = learned(CLONING, probes.gaussians(np.random.default_rng(0)), 2000)
    noise = np.random.default_rng(3).normal(size=(DRAWS, 1, 2))
    usual = (np.abs(noise[:, 0]) < 2.5).all(axis=1)  # a network learns little about rare noise
    levels = NoiseLevels(20)

    @jax.jit
    def land(s, z):
        denoise = consistency.denoiser(policy.actor, levels, s)
        return jax.vmap(lambda z: consistency.consistency_path(denoise, levels, z))(z)

    for state in range(3):
        landed = land(jnp.asarray(probes.STATES[state]), jnp.asarray(noise, jnp.float32))
        mean, spread = probes.GAUSSIAN_MEANS[state], probes.GAUSSIAN_SPREADS[state]
        exact = np.clip(mean + spread * noise[:, 0], -1, 1)
        error = np.abs(landed - exact)[usual]
        print(state, error.mean(), np.quantile(error, 0.99))
        assert error.mean() < 0.1
        assert np.quantile(error, 0.99) < 0.35


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_the_q_term_the_policy_finds_the_optimum_of_a_bandit(uniform_bandit, steps):
    actions = draw(uniform_bandit, steps)
    distance = np.linalg.norm(actions - probes.BANDIT_OPTIMUM, axis=1).mean()
    rewards = probes.bandit_reward(actions).mean()
    print(steps, distance, rewards)
    assert distance < 0.3  # of uniform actions 0.9
    assert rewards > -0.1  # of uniform actions -1.077


@pytest.fixture(scope="module")
def uniform_bandit() -> CACPolicy:
    actions = probes.uniform_actions(np.random.default_rng(0))
    return learned(IMPROVING, probes.bandit(actions, probes.bandit_reward(actions)), 1500)


def test_two_steps_have_their_exact_values_and_the_first_is_taken_for_the_second():
    dataset, values = probes.two_step(np.random.default_rng(0))
    policy = learned(IMPROVING, dataset, 1500)
    rng = np.random.default_rng(1)
    for (state, side), exact in values.items():
        actions = jnp.asarray(probes.sided_actions(rng, 200, side), jnp.float32)
        found = np.asarray(_score(policy, jnp.asarray(probes.STATES[state]), actions))
        print(state, side, exact, found.mean(), found.std())
        assert found.mean() == pytest.approx(exact, abs=0.1)
    for state in (0, 1):
        for steps in (1, 2):
            assert (draw(policy, steps, state=state)[:, 0] > 0).mean() > 0.9  # 0.5 in the data
