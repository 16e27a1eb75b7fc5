"""Consistency models: levels, boundary, loss and sampler against slow, independent computations."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
import one_member
from sorl import consistency
from sorl.consistency import NoiseLevels
from sorl.nn import ActionNetwork
from sorl.types import Spec

LEVELS = NoiseLevels(40)
ROWS = 9


def network_of(seed: int) -> ActionNetwork:
    return ActionNetwork(Spec(4, 3), (16, 16), scalars=1, key=jax.random.key(seed))


def slow_levels(count: int) -> np.ndarray:
    n = np.arange(count)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + n / (count - 1) * (high - low)) ** 7


def slow_denoiser(network, s, x, level):
    """f(x, τ), with the scalings written out for a spread of 0.5."""
    above, size = level - 0.002, np.sqrt(level**2 + 0.25)
    answer = slow.mlp(network.mlp, np.concatenate([s, x / size, [np.log(level) / 4]]))
    return 0.25 / (above**2 + 0.25) * x + 0.5 * above / size * answer


@pytest.mark.parametrize("count", [2, 10, 40])
def test_levels_are_karras(count):
    found = np.asarray(NoiseLevels(count).values())
    np.testing.assert_allclose(found, slow_levels(count), rtol=1e-5)
    assert (found[0], found[-1]) == (np.float32(0.002), 80)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_at_the_lowest_level_the_action_is_the_input_to_the_bit(rng, seed):
    """The boundary condition, whatever the network says; a level above it does not hold."""
    denoise = jax.jit(consistency.denoiser(network_of(seed), LEVELS, jnp.asarray([1.0, 2, 3, 4])))
    for _ in range(5):
        x = jnp.asarray(rng.normal(size=3), jnp.float32)
        np.testing.assert_array_equal(denoise(x, LEVELS.values()[0]), x)
        assert np.abs(denoise(x, LEVELS.values()[20]) - x).max() > 1e-2


def test_the_denoiser_equals_numpy_at_every_level(rng):
    network, s = network_of(0), rng.normal(size=4)
    denoise = jax.jit(consistency.denoiser(network, LEVELS, jnp.asarray(s, jnp.float32)))
    for level in slow_levels(40)[::6]:
        x = rng.normal(size=3) * (0.5 + level)
        found = denoise(jnp.asarray(x, jnp.float32), jnp.float32(level))
        np.testing.assert_allclose(found, slow_denoiser(network, s, x, level), rtol=1e-3, atol=1e-4)


def test_consistency_error_equals_numpy_and_moves_the_online_network_alone(rng):
    """Levels and noise are drawn again from the same keys; all else is written anew."""
    networks = network_of(0), network_of(1)
    s, a, key = rng.normal(size=(ROWS, 4)), rng.uniform(-1, 1, (ROWS, 3)), jax.random.key(2)
    observation, action = jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32)

    def error(networks):
        online, target = networks
        return consistency.consistency_error(online, target, LEVELS, observation, action, key=key)

    found = error(networks)
    index_key, noise_key = jax.random.split(key)
    index = np.asarray(jax.random.randint(index_key, (ROWS,), 0, 39))
    noise = np.asarray(jax.random.normal(noise_key, (ROWS, 3)), np.float64)
    levels = slow_levels(40)
    for i in range(ROWS):
        low, high = levels[index[i]], levels[index[i] + 1]
        online = slow_denoiser(networks[0], s[i], a[i] + high * noise[i], high)
        target = slow_denoiser(networks[1], s[i], a[i] + low * noise[i], low)
        np.testing.assert_allclose(found[i], np.mean((online - target) ** 2), rtol=2e-3, atol=1e-6)

    online, target = one_member.gradient_of(lambda networks: jnp.mean(error(networks)), networks)
    assert one_member.all_move(online)
    assert one_member.none_moves(target)


@pytest.mark.parametrize("steps", [1, 2, 5, 39])
def test_the_path_equals_numpy(rng, steps):
    network, s = network_of(0), rng.normal(size=4)
    noise = rng.normal(size=(steps, 3))
    denoise = consistency.denoiser(network, LEVELS, jnp.asarray(s, jnp.float32))
    found = jax.jit(lambda z: consistency.consistency_path(denoise, LEVELS, z))(
        jnp.asarray(noise, jnp.float32)
    )
    levels = slow_levels(40)
    # Counted from the lowest: the i-th of `steps` lies i/steps of the way up, to the nearest.
    upwards = [int(np.floor(39 * i / steps + 0.5)) for i in range(1, steps + 1)]
    x = 0.0
    for i, level in enumerate(levels[upwards[::-1]]):
        added = level if i == 0 else np.sqrt(level**2 - 0.002**2)
        x = np.clip(slow_denoiser(network, s, x + added * noise[i], level), -1, 1)
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 39])
def test_with_the_exact_function_of_a_gaussian_every_number_of_steps_draws_it(steps):
    """For N(m, d²) the ways from noise are known: f(x, τ) = m + (x - m) √(d² + τ_1²)/√(d² + τ²).

    One step starts from noise around 0 where the ways start around m, which shifts its draws by
    less than d m / τ_N; each further step draws from the exact distribution.
    """
    mean, spread = 0.3, 0.15

    def exact(x, level):
        return mean + (x - mean) * jnp.sqrt((spread**2 + 0.002**2) / (spread**2 + level**2))

    noise = jax.random.normal(jax.random.key(0), (4000, steps, 1))
    path = functools.partial(consistency.consistency_path, exact, LEVELS)
    actions = np.asarray(eqx.filter_jit(jax.vmap(path))(noise))
    assert actions.mean() == pytest.approx(mean, abs=0.01)
    assert actions.std() == pytest.approx(spread, rel=0.05)
