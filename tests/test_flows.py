"""Flows: interpolation, sampling and self-consistency against slow, independent computations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_networks as slow
from sorl import flows
from sorl.nn import ActionNetwork
from sorl.types import Spec

E = 0.05  # far above SORL's 1e-5, so that a slip in its place shows


def test_interpolation_starts_at_noise_and_ends_at_the_action(rng):
    noise, action = rng.normal(size=(2, 5)).astype(np.float32)
    x, u = flows.interpolate(
        jnp.asarray(noise), jnp.asarray(action), jnp.asarray(0.0), noise_floor=E
    )
    np.testing.assert_allclose(x, noise, rtol=1e-6)
    np.testing.assert_allclose(u, action - (1 - E) * noise, rtol=1e-6)
    x, _ = flows.interpolate(
        jnp.asarray(noise), jnp.asarray(action), jnp.asarray(1.0), noise_floor=E
    )
    np.testing.assert_allclose(x, action + E * noise, atol=1e-6)


@given(st.floats(0.05, 0.95), st.integers(0, 2**31 - 1))
def test_target_is_the_time_derivative_of_the_path(time, seed):
    noise, action = np.random.default_rng(seed).normal(size=(2, 3))

    def path(t):
        return (1 - (1 - E) * t) * noise + t * action

    slope = (path(time + 1e-3) - path(time - 1e-3)) / 2e-3
    x, u = flows.interpolate(
        jnp.asarray(noise, jnp.float32),
        jnp.asarray(action, jnp.float32),
        jnp.float32(time),
        noise_floor=E,
    )
    np.testing.assert_allclose(u, slope, atol=1e-4)
    np.testing.assert_allclose(x, path(time), atol=1e-5)


def velocity(x, time, level):
    """Depends on everything a network could depend on."""
    return jnp.sin(x) * (1 + time) - 0.3 * level * jnp.flip(x)


def slow_euler(x, steps):
    for i in range(steps):
        field = np.sin(x) * (1 + i / steps) - 0.3 * np.log2(steps) * x[::-1]
        x = x + field / steps
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 16])
def test_euler_equals_a_plain_loop_static_and_dynamic(steps, rng):
    noise = rng.normal(size=4)
    expected = slow_euler(noise, steps)
    x0 = jnp.asarray(noise, jnp.float32)
    np.testing.assert_allclose(flows.euler_path(velocity, x0, steps=steps), expected, rtol=2e-5)
    dynamic = jax.jit(lambda x, k: flows.euler_loop(velocity, x, steps=k))
    np.testing.assert_allclose(dynamic(x0, jnp.asarray(steps)), expected, rtol=2e-5)


@given(st.integers(1, 300), st.integers(1, 6))
def test_levels_are_stratified(rows, levels):
    counts = np.bincount(np.asarray(flows.stratified_levels(rows, levels)), minlength=levels)
    assert counts.sum() == rows
    assert counts.max() - counts.min() <= 1


def test_levels_of_the_standard_batch_are_the_papers():
    assert np.bincount(np.asarray(flows.stratified_levels(256, 3))).tolist() == [86, 85, 85]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_self_consistency_lands_where_two_half_steps_land(level, rng):
    x = rng.normal(size=3)
    time, step = 0.25, 2.0**-level

    def slow(x, t, k):
        return np.sin(x) * (1 + t) - 0.3 * k * x[::-1]

    half = x + step / 2 * slow(x, time, level + 1)
    landed = half + step / 2 * slow(half, time + step / 2, level + 1)
    target = flows.self_consistency_target(
        velocity, jnp.asarray(x, jnp.float32), jnp.float32(time), jnp.float32(level)
    )
    np.testing.assert_allclose(x + step * np.asarray(target), landed, rtol=1e-5)


def test_self_consistency_holds_where_the_exact_shortcut_is_known(rng):
    """All data at one point c: the flow is x + (c - x0) t, and every step size is exact."""
    point = rng.normal(size=3)

    def exact(x, time, level):
        # The straight path through x at time t ends in c: the velocity is (c - x) / (1 - t).
        return (jnp.asarray(point, jnp.float32) - x) / (1 - time)

    x = jnp.asarray(rng.normal(size=3), jnp.float32)
    for level in (0, 1, 2):
        time = jnp.float32(0.0)
        target = flows.self_consistency_target(exact, x, time, jnp.float32(level))
        np.testing.assert_allclose(target, exact(x, time, None), rtol=1e-4)
    for steps in (1, 2, 4, 8):
        np.testing.assert_allclose(flows.euler_path(exact, x, steps=steps), point, rtol=1e-4)


def test_flow_matching_error_equals_numpy(rng):
    """The noise and the times are drawn again from the same keys; all else is written anew."""
    network = ActionNetwork(Spec(4, 3), (8, 8), scalars=1, key=jax.random.key(0))
    s, a = (rng.normal(size=(6, size)).astype(np.float32) for size in (4, 3))
    key = jax.random.key(2)
    error = flows.flow_matching_error(network, jnp.asarray(s), jnp.asarray(a), key=key)
    noise_key, time_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(noise_key, (6, 3)), np.float64)
    time = np.asarray(jax.random.uniform(time_key, (6,)), np.float64)
    for i in range(6):
        x = (1 - time[i]) * noise[i] + time[i] * a[i]
        v = slow.mlp(network.mlp, np.concatenate([s[i], x, [time[i]]]))
        assert error[i] == pytest.approx(np.mean((v - (a[i] - noise[i])) ** 2), rel=1e-3)


def test_a_network_of_one_size_steps_as_euler_does(rng):
    network = ActionNetwork(Spec(4, 3), (8, 8), scalars=1, key=jax.random.key(0))
    s, x = rng.normal(size=4), rng.normal(size=3)
    landed = flows.euler_path(
        flows.one_size(network, jnp.asarray(s, jnp.float32)), jnp.asarray(x, jnp.float32), steps=3
    )
    for i in range(3):
        x = x + slow.mlp(network.mlp, np.concatenate([s, x, [i / 3]])) / 3
    np.testing.assert_allclose(landed, x, rtol=1e-3, atol=1e-5)
