"""Shared loss terms against NumPy, and where their gradients must not go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sorl import losses


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
