"""SAC against plain NumPy, its density against integration, and a problem with a known optimum."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from numpy_networks import mlp, q_values
from one_member import assert_same, first_adam_step
from sorl.data.generate.expert.sac import (
    SAC,
    Experience,
    SquashedGaussian,
    Temperature,
    act,
    actor_loss,
    temperature_loss,
)
from sorl.losses import critic_loss
from sorl.types import Spec

SPEC = Spec(3, 2)
RECIPE = SAC(hidden=(16, 16), learning_rate=5e-3, discount=0.9, initial_temperature=0.3)


def log_density(actor, s, noise):
    """The action and log π(a|s), from SciPy's Gaussian and 1 - tanh² in float64."""
    mean, log_std = np.split(mlp(actor.mlp, np.asarray(s, np.float64)), 2)
    std = np.exp(log_std)
    u = mean + std * np.asarray(noise, np.float64)
    density = stats.norm.logpdf(u, mean, std) - np.log(1 - np.tanh(u) ** 2)
    return np.tanh(u), density.sum()


@pytest.fixture(scope="module")
def state():
    state = RECIPE.init(SPEC, key=jax.random.key(0))
    # The target must be told from the critic.
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, state.target_critic)
    return eqx.tree_at(lambda s: s.target_critic, state, shifted)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    return Experience(
        observation=jnp.asarray(generator.normal(size=(5, 3)), jnp.float32),
        action=jnp.asarray(generator.uniform(-1, 1, (5, 2)), jnp.float32),
        reward=jnp.asarray(generator.normal(size=5), jnp.float32),
        mask=jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]),
        next_observation=jnp.asarray(generator.normal(size=(5, 3)), jnp.float32),
    )


def test_target_and_losses_are_the_equations(state, batch) -> None:
    noise = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    y, actor_terms, entropies = [], [], []
    for i in range(5):
        a, log_pi = log_density(state.actor, batch.next_observation[i], noise[i])
        q = q_values(state.target_critic, batch.next_observation[i], a).min()
        y.append(batch.reward[i] + 0.9 * batch.mask[i] * (q - 0.3 * log_pi))
        a, log_pi = log_density(state.actor, batch.observation[i], noise[i])
        actor_terms.append(0.3 * log_pi - q_values(state.critic, batch.observation[i], a).min())
        entropies.append(-log_pi)
    target = eqx.filter_jit(RECIPE.target)(state, batch, jnp.asarray(noise))
    np.testing.assert_allclose(target, y, rtol=1e-4, atol=1e-5)
    loss, metrics = eqx.filter_jit(actor_loss)(
        state.actor, state.critic, state.temperature(), batch.observation, jnp.asarray(noise)
    )
    np.testing.assert_allclose(loss, np.mean(actor_terms), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], np.mean(entropies), rtol=1e-4)
    q = np.array([q_values(state.critic, *row) for row in zip(*batch[:2], strict=True)])
    loss, _ = eqx.filter_jit(critic_loss)(state.critic, batch.observation, batch.action, target)
    np.testing.assert_allclose(loss, np.mean((q - np.array(y)[:, None]) ** 2), rtol=1e-4)


@pytest.mark.parametrize("entropy", [-3.0, -1.5])
def test_temperature_prices_entropy(entropy: float) -> None:
    temperature = Temperature(jnp.log(jnp.asarray(0.3)))
    (loss, _), gradient = eqx.filter_value_and_grad(temperature_loss, has_aux=True)(
        temperature, jnp.asarray(entropy), -2.0
    )
    assert loss == pytest.approx(0.3 * (entropy + 2.0), rel=1e-5)
    # Too much entropy pushes log α down, too little up.
    assert gradient.log == pytest.approx(0.3 * (entropy + 2.0), rel=1e-5)


def draw_bandit(generator: np.random.Generator) -> Experience:
    """Uniform actions of a one-step problem with r(a) = -(a - c)²/(2 s²), c = 0.3, s = 0.5."""
    action = jnp.asarray(generator.uniform(-1, 1, (64, 1)), jnp.float32)
    same = jnp.ones((64, 1))
    reward = -((action[:, 0] - 0.3) ** 2) / (2 * 0.5**2)
    return Experience(same, action, reward, jnp.zeros(64), same)


def test_an_update_moves_every_network_as_the_equations_say() -> None:
    state = RECIPE.init(Spec(1, 1), key=jax.random.key(0))
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, state.target_critic)
    before = eqx.tree_at(lambda s: s.target_critic, state, shifted)
    batch = draw_bandit(np.random.default_rng(0))
    # An update takes over the memory of the state.
    after, metrics = RECIPE.update(jax.tree.map(jnp.copy, before), batch, jax.random.key(2))
    # Adam's first step is the learning rate against the sign of the gradient.
    entropy = float(metrics["actor/entropy"])
    moved = float(after.temperature.log - before.temperature.log)
    assert moved == pytest.approx(-5e-3 * math.copysign(1, entropy + 1.0), rel=1e-2)
    assert float(metrics["temperature/alpha"]) == pytest.approx(0.3, rel=1e-5)
    for old, new, critic in zip(
        *map(jax.tree.leaves, (shifted, after.target_critic, after.critic)), strict=True
    ):
        np.testing.assert_allclose(new, old + 0.005 * (critic - old), rtol=1e-5, atol=1e-7)
    for old, new in zip(
        *map(jax.tree.leaves, ((before.actor, before.critic), (after.actor, after.critic))),
        strict=True,
    ):
        assert np.abs(new - old).max() == pytest.approx(5e-3, rel=1e-2)


def test_an_update_is_one_step_of_adam_towards_the_target_and_then_up_the_critic(
    state, batch
) -> None:
    key = jax.random.key(4)
    target_noise, actor_noise = jax.random.normal(key, (2, *batch.action.shape))
    y = RECIPE.target(state, batch, target_noise)
    after, metrics = RECIPE.update(jax.tree.map(jnp.copy, state), batch, key)

    def of_critic(critic):
        return critic_loss(critic, batch.observation, batch.action, y)[0]

    def of_actor(actor):
        alpha = state.temperature()
        return actor_loss(actor, after.critic, alpha, batch.observation, actor_noise)[0]

    for name, loss in (("critic", of_critic), ("actor", of_actor)):
        moved, before, norm = first_adam_step(loss, getattr(state, name), learning_rate=5e-3)
        assert_same(getattr(after, name), moved, atol=1.5e-4)
        assert metrics[f"{name}/loss"] == pytest.approx(before, rel=1e-4)
        assert metrics[f"{name}/gradient_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.2), (-2.0, 0.4)])
def test_the_density_of_a_squashed_gaussian_integrates_to_one(mean: float, log_std: float) -> None:
    actor = SquashedGaussian(Spec(1, 1), (4,), key=jax.random.key(0))
    # Weights of 0 leave the last bias.
    actor = jax.tree.map(jnp.zeros_like, actor)
    actor = eqx.tree_at(lambda a: a.mlp.layers[-1].bias, actor, jnp.array([mean, log_std]))
    actions = np.tanh(np.linspace(-12, 12, 20_001))
    noise = (np.arctanh(actions) - mean) / np.exp(log_std)
    inside = np.abs(actions) < 1 - 1e-12
    a, log_pi = eqx.filter_jit(actor.batch)(
        jnp.zeros((inside.sum(), 1)), jnp.asarray(noise[inside])[:, None]
    )
    np.testing.assert_allclose(a[:, 0], actions[inside], atol=2e-6)
    mass = integrate.trapezoid(np.exp(np.asarray(log_pi, np.float64)), actions[inside])
    assert mass == pytest.approx(1.0, abs=2e-4)
    # Where tanh is 1 to rounding the naive formula is infinite and this one is not.
    assert np.isfinite(actor(jnp.zeros(1), jnp.array([40.0]))[1])


def test_finds_the_optimum_of_a_bandit_with_entropy() -> None:
    """The best policy of a squared reward is N(c, α s²), and its entropy H̄ = -1 tells α.

    Tails beyond ±1 and the tanh hardly count: the deviation is 0.089. Q is r itself.
    """
    variance = math.exp(-2) / (2 * math.pi * math.e)
    alpha = variance / 0.5**2
    state = RECIPE.init(Spec(1, 1), key=jax.random.key(0))
    generator = np.random.default_rng(0)
    for key in jax.random.split(jax.random.key(1), 2000):
        state, _ = RECIPE.update(state, draw_bandit(generator), key)
    noise = jnp.asarray(generator.standard_normal((4000, 1)).astype(np.float32))
    actions, log_pi = eqx.filter_jit(state.actor.batch)(jnp.ones((4000, 1)), noise)
    assert np.mean(actions) == pytest.approx(0.3, abs=0.03)
    assert np.std(actions) == pytest.approx(math.sqrt(variance), rel=0.15)
    assert -np.mean(log_pi) == pytest.approx(-1.0, abs=0.15)
    assert float(state.temperature()) == pytest.approx(alpha, rel=0.25)
    tried = np.linspace(-0.2, 0.8, 11, dtype=np.float32)[:, None]
    q = state.critic.batch(jnp.ones((11, 1)), jnp.asarray(tried))
    expected = -((tried - 0.3) ** 2) / (2 * 0.5**2)
    np.testing.assert_allclose(q, np.broadcast_to(expected, q.shape), atol=0.05)


def test_acting_is_the_policy(state) -> None:
    s, noise = jnp.array([0.1, -2.0, 0.5]), jnp.array([0.3, -1.0])
    np.testing.assert_allclose(
        act(state.actor, s, noise), log_density(state.actor, s, noise)[0], rtol=1e-5
    )
