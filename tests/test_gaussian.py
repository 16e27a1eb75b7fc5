"""Policies of one pass: density, draws, clipping, the one number of steps they take."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import numpy_networks as slow
from one_member import SPEC
from sorl import gaussian
from sorl.errors import InputError
from sorl.gaussian import DirectActor, GaussianPolicy


def actor_of(*, squash: bool) -> DirectActor:
    return DirectActor(SPEC, (16, 16), squash=squash, key=jax.random.key(0))


def test_log_density_is_that_of_the_normal_distribution_without_its_constant(rng):
    action, mean = rng.normal(size=(2, 5, 3))
    found = gaussian.log_density(jnp.asarray(action, jnp.float32), jnp.asarray(mean, jnp.float32))
    for i in range(5):
        exact = scipy.stats.multivariate_normal.logpdf(action[i], mean[i])
        assert found[i] == pytest.approx(exact + 1.5 * np.log(2 * np.pi), rel=1e-4)


@pytest.mark.parametrize("squash", [False, True])
def test_the_actor_is_numpys_network_one_by_one_and_in_batches(rng, squash):
    actor = actor_of(squash=squash)
    s = 5 * rng.normal(size=(6, 4))
    found = actor.batch(jnp.asarray(s, jnp.float32))
    exact = np.array([slow.mlp(actor.mlp, row) for row in s])
    assert np.abs(exact).max() > 1  # else nothing is seen of the tanh's absence
    exact = np.tanh(exact) if squash else exact
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(actor(jnp.asarray(s[2], jnp.float32)), found[2], atol=1e-5)


def test_draws_are_normal_around_the_mean_and_clipped():
    actor = actor_of(squash=False)
    mean = jnp.asarray([0.1, -0.2, 5.0])
    actor = eqx.tree_at(
        lambda a: (a.mlp.layers[-1].weight, a.mlp.layers[-1].bias),
        actor,
        (jnp.zeros((16, 3)), mean),
    )
    keys = jax.random.split(jax.random.key(1), 4000)
    policy = GaussianPolicy(actor, sampling_std=0.2)
    draws = np.asarray(jax.vmap(lambda key: policy.sample(jnp.ones(4), steps=1, key=key))(keys))
    assert np.all(draws[:, 2] == 1)
    for i in (0, 1):
        exact = scipy.stats.norm(float(mean[i]), 0.2)
        inside = np.abs(draws[:, i]) < 1
        assert inside.mean() > 0.99
        assert scipy.stats.kstest(draws[:, i], exact.cdf).pvalue > 1e-3
    still = GaussianPolicy(actor, sampling_std=0.0).sample(jnp.ones(4), steps=1, key=keys[0])
    np.testing.assert_array_equal(still, np.clip(mean, -1, 1))


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_any_number_of_steps_but_one_is_refused(steps):
    policy = GaussianPolicy(actor_of(squash=False), sampling_std=0.0)
    policy.check_steps(1)
    with pytest.raises(InputError, match=f"cannot act in {steps} sampling steps"):
        policy.check_steps(steps)
