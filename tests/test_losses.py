"""Shared loss terms against NumPy, and where their gradients must not go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import numpy_networks as slow
from sorl import losses
from sorl.nn import Critic
from sorl.types import Spec


def test_aggregation(rng):
    values = rng.normal(size=(9, 2)).astype(np.float32)
    np.testing.assert_allclose(losses.aggregate(jnp.asarray(values), "mean"), values.mean(1), 1e-6)
    np.testing.assert_allclose(losses.aggregate(jnp.asarray(values), "min"), values.min(1))


def test_td_target_masks_and_stops_the_gradient(rng):
    reward, value = rng.normal(size=(2, 6)).astype(np.float32)
    mask = np.array([1, 0, 1, 0, 1, 1], np.float32)

    def target(next_value):
        return losses.td_target(jnp.asarray(reward), jnp.asarray(mask), next_value, discount=0.9)

    np.testing.assert_allclose(target(jnp.asarray(value)), reward + 0.9 * mask * value, rtol=1e-6)
    gradient = jax.grad(lambda v: target(v).sum())(jnp.asarray(value))
    assert not np.any(gradient)


def test_q_loss_is_free_of_scale_and_its_normaliser_passes_no_gradient(rng):
    q = rng.normal(size=8).astype(np.float32) - 3
    np.testing.assert_allclose(
        losses.normalised_q_loss(jnp.asarray(q)), -q.mean() / np.abs(q).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.normalised_q_loss(jnp.asarray(1000 * q)),
        losses.normalised_q_loss(jnp.asarray(q)),
        rtol=1e-5,
    )
    gradient = jax.grad(losses.normalised_q_loss)(jnp.asarray(q))
    np.testing.assert_allclose(gradient, np.full(8, -1 / np.abs(q).mean() / 8), rtol=1e-5)


def test_q_loss_of_zeros_is_finite():
    assert np.isfinite(losses.normalised_q_loss(jnp.zeros(4)))
    assert np.all(np.isfinite(jax.grad(losses.normalised_q_loss)(jnp.zeros(4))))


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_the_minimum_of_the_expectile_loss_is_the_expectile(rng, expectile):
    """Against SciPy's expectile, which solves the defining equation."""
    sample = rng.gamma(2.0, size=400)
    grid = np.linspace(sample.min(), sample.max(), 20_001)
    loss = np.zeros_like(grid)
    for value in sample:
        loss += np.asarray(
            losses.expectile_loss(jnp.asarray(value - grid, jnp.float32), expectile=expectile)
        )
    expected = scipy.stats.expectile(sample, alpha=expectile)
    assert grid[loss.argmin()] == pytest.approx(expected, abs=2e-2)


def test_expectile_loss_is_half_the_square_at_one_half(rng):
    u = rng.normal(size=9).astype(np.float32)
    half = losses.expectile_loss(jnp.asarray(u), expectile=0.5)
    np.testing.assert_allclose(half, 0.5 * u**2, rtol=1e-6)


def test_advantage_weights_are_capped_and_pass_no_gradient():
    advantage = jnp.asarray([-1e6, -1.0, 0.0, 0.3, 1.0, 1e6])

    def weights(a):
        return losses.advantage_weights(a, inverse_temperature=10.0)

    expected = [0.0, np.exp(-10.0), 1.0, np.exp(3.0), 100.0, 100.0]
    np.testing.assert_allclose(weights(advantage), expected, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda a: weights(a).sum())(advantage), np.zeros(6))
    np.testing.assert_array_equal(losses.advantage_weights(advantage, inverse_temperature=0.0), 1.0)


def test_critic_loss_equals_numpy_over_rows_and_heads(rng):
    critic = Critic(Spec(4, 3), 1, (8, 8), heads=3, key=jax.random.key(0))
    s, a = (rng.normal(size=(7, size)).astype(np.float32) for size in (4, 3))
    y = rng.normal(size=7).astype(np.float32)
    loss, metrics = losses.critic_loss(
        critic, jnp.asarray(s), jnp.asarray(a), jnp.asarray(y), jnp.asarray(4.0)
    )
    q = np.stack([slow.q_values(critic, s[i], a[i], 4.0) for i in range(7)])
    np.testing.assert_allclose(loss, ((q - y[:, None]) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-4, atol=1e-6)
