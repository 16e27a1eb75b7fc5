"""Diffusion: schedule, loss and sampler against closed forms and slow, independent computations."""

from __future__ import annotations

import math
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_networks as slow
import probes
from sorl import diffusion
from sorl.diffusion import VariancePreserving
from sorl.nn import ActionNetwork
from sorl.types import Spec

SCHEDULE = VariancePreserving(0.1, 10.0)
OTHER = VariancePreserving(0.1, 20.0)
DRAWS = 2000


def discrete_rates(schedule: VariancePreserving, count: int) -> np.ndarray:
    """The rates 1..T of the discrete schedule, from their own formula."""
    low, high = schedule.lowest_rate, schedule.highest_rate
    i = np.arange(1, count + 1)
    return 1 - np.exp(-low / count - (high - low) * (2 * i - 1) / (2 * count**2))


# Schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULE, OTHER])
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_the_continuous_schedule_passes_through_the_discrete_one(schedule, count):
    kept = np.cumprod(1 - discrete_rates(schedule, count))
    time = jnp.arange(1, count + 1) / count
    np.testing.assert_allclose(schedule.signal(time), np.sqrt(kept), rtol=1e-4)
    np.testing.assert_allclose(schedule.noise(time), np.sqrt(1 - kept), rtol=1e-4)


def test_variance_is_preserved_and_small_times_are_exact():
    time = np.array([0.0, 1e-6, 1e-3, 0.3, 1.0])
    signal, noise = (np.asarray(f(jnp.asarray(time))) for f in (SCHEDULE.signal, SCHEDULE.noise))
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-6)
    assert (signal[0], noise[0]) == (1, 0)
    exact = np.sqrt(-np.expm1(-0.1 * time - 9.9 * time**2 / 2))
    np.testing.assert_allclose(noise, exact, rtol=1e-4)


@given(st.integers(1, 200), st.data())
def test_strided_numbers_are_even_and_end_with_the_last(count, data):
    steps = data.draw(st.integers(1, count))
    chosen = diffusion.strided(count, steps)
    gaps = np.diff([0, *chosen])
    nearest = [Fraction(i * count, steps) + Fraction(1, 2) for i in range(1, steps + 1)]
    assert chosen == [math.floor(value) for value in nearest]
    assert chosen[-1] == count
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert diffusion.strided(count, count) == list(range(1, count + 1))


# Loss ----------------------------------------------------------------------------------------


def test_noise_prediction_error_equals_numpy(rng):
    """The noise is drawn again from the same key; all else is written anew."""
    network = ActionNetwork(Spec(4, 3), (16, 16), scalars=1, key=jax.random.key(0))
    s, a, t = rng.normal(size=(7, 4)), rng.normal(size=(7, 3)), rng.uniform(size=7)
    key = jax.random.key(1)
    found = jax.jit(
        lambda s, a, t: diffusion.noise_prediction_error(network, SCHEDULE, s, a, t, key=key)
    )(*(jnp.asarray(x, jnp.float32) for x in (s, a, t)))
    noise = np.asarray(jax.random.normal(key, (7, 3)), np.float64)
    for i in range(7):
        kept = np.exp(-0.1 * t[i] - 9.9 * t[i] ** 2 / 2)
        x = np.sqrt(kept) * a[i] + np.sqrt(1 - kept) * noise[i]
        error = slow.mlp(network.mlp, np.concatenate([s[i], x, [t[i]]])) - noise[i]
        np.testing.assert_allclose(found[i], np.mean(error**2), rtol=1e-3)


# Sampler -------------------------------------------------------------------------------------


def exact_prediction(mixture: probes.Mixture, schedule: VariancePreserving):
    """E[ε | x_t = x] where the actions are `mixture`, undisturbed by its clipping.

    x_t is a mixture too, with centres α c and variances α² s² + σ² =: v, so with the posterior
    weights w of the modes E[ε | x] = σ Σ w (x - α c) / v.
    """
    centres, log_weights = jnp.asarray(mixture.centres), jnp.log(jnp.asarray(mixture.weights))
    growth = schedule.highest_rate - schedule.lowest_rate

    def predict(x, time):
        kept = jnp.exp(-schedule.lowest_rate * time - growth * time**2 / 2)
        variance = kept * mixture.spread**2 + 1 - kept
        away = x[None] - jnp.sqrt(kept) * centres
        weights = jax.nn.softmax(log_weights - jnp.sum(away**2, axis=1) / (2 * variance))
        return jnp.sqrt(1 - kept) * (weights @ away) / variance

    return predict


@eqx.filter_jit
def _paths(prediction, schedule, trained_steps, noise):
    return jax.vmap(
        lambda z: diffusion.ancestral_path(prediction, schedule, z, trained_steps=trained_steps)
    )(noise)


def noise_of(draws, steps) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (draws, steps, 2))


def draw(prediction, steps, trained_steps, *, schedule=SCHEDULE, draws=DRAWS) -> np.ndarray:
    return np.asarray(_paths(prediction, schedule, trained_steps, noise_of(draws, steps)))


def textbook_path(prediction, noise) -> np.ndarray:
    """Ancestral sampling as it is written for predicted noise, from the discrete rates.

    x ← (x - β / √(1 - ᾱ) ε) / √(1 - β) + √β z, with ε changed so that the action it stands for,
    (x - √(1 - ᾱ) ε) / √ᾱ, is in [-1, 1].
    """
    steps = len(noise)
    x, *others = np.asarray(noise, np.float64)
    rates = discrete_rates(SCHEDULE, steps)
    kept = np.cumprod(1 - rates)
    for i, z in zip(reversed(range(steps)), [*others, None], strict=True):
        noise = np.asarray(prediction(jnp.asarray(x, jnp.float32), jnp.float32((i + 1) / steps)))
        action = (x - np.sqrt(1 - kept[i]) * noise) / np.sqrt(kept[i])
        noise = (x - np.sqrt(kept[i]) * np.clip(action, -1, 1)) / np.sqrt(1 - kept[i])
        x = (x - rates[i] / np.sqrt(1 - kept[i]) * noise) / np.sqrt(1 - rates[i])
        if z is not None:
            x = x + np.sqrt(rates[i]) * z
    return x


@pytest.mark.parametrize("steps", [1, 10])
def test_sampling_equals_the_textbook_draw_by_draw(steps):
    def wild(x, time):
        """Depends on everything, and asks for actions out of range."""
        return jnp.sin(3 * x) * (1 - time) + 0.4 * jnp.flip(x) * time

    for prediction in (exact_prediction(probes.FOUR_MODES, SCHEDULE), wild):
        found = draw(prediction, steps, steps, draws=20)
        exact = np.array([textbook_path(prediction, noise) for noise in noise_of(20, steps)])
        np.testing.assert_allclose(found, exact, atol=2e-3)
        assert np.abs(found).max() <= 1
    assert (np.abs(found) > 0.999).any()  # the clipping was put to the test


def test_strided_sampling_is_the_sampling_of_the_coarser_schedule():
    """What is trained at 10 or at 1,000 times samples alike: only the times that are kept count."""
    prediction = exact_prediction(probes.FOUR_MODES, SCHEDULE)
    found = [draw(prediction, 5, trained, draws=50) for trained in (5, 10, 1000)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)
    np.testing.assert_allclose(found[2], found[0], atol=1e-3)


def is_far(actions: np.ndarray, mixture: probes.Mixture, *, energy: float, share: float) -> bool:
    """Whether `actions` are no draws of `mixture`; between true draws the energy is near 0.001."""
    true = mixture.draw(np.random.default_rng(99), len(actions))
    distance = probes.energy_distance(actions, true)
    shares = mixture.shares(actions)
    print(f"energy {distance:.4f}, shares {shares.round(3)}, astray {mixture.astray(actions):.3f}")
    return distance > energy or np.abs(shares - mixture.weights).max() > share


@pytest.mark.parametrize(("steps", "trained_steps"), [(100, 100), (50, 200)])
def test_with_the_exact_noise_many_steps_draw_the_distribution(steps, trained_steps):
    prediction = exact_prediction(probes.FOUR_MODES, SCHEDULE)
    actions = draw(prediction, steps, trained_steps)
    assert not is_far(actions, probes.FOUR_MODES, energy=0.004, share=0.035)
    within = actions - probes.FOUR_MODES.centres[probes.FOUR_MODES.nearest(actions)]
    np.testing.assert_allclose(within.std(axis=0), probes.FOUR_MODES.spread, rtol=0.15)


def test_the_check_fails_wrong_times_and_wrong_weights():
    """It is blind to small slips in time; those the comparison draw by draw sees."""
    exact = exact_prediction(probes.FOUR_MODES, SCHEDULE)
    actions = draw(lambda x, time: exact(x, 2 * time), 50, 50)
    assert is_far(actions, probes.FOUR_MODES, energy=0.004, share=0.035)
    even = probes.Mixture(probes.FOUR_MODES.centres, np.full(4, 0.25), probes.FOUR_MODES.spread)
    actions = draw(exact_prediction(even, SCHEDULE), 50, 50)
    assert is_far(actions, probes.FOUR_MODES, energy=0.004, share=0.035)


def test_ten_steps_keep_the_modes_and_a_single_step_answers_their_mean():
    prediction = exact_prediction(probes.FOUR_MODES, SCHEDULE)
    assert not is_far(draw(prediction, 10, 10), probes.FOUR_MODES, energy=0.015, share=0.05)
    one = draw(prediction, 1, 10)
    mean = probes.FOUR_MODES.weights @ probes.FOUR_MODES.centres
    np.testing.assert_allclose(one.mean(axis=0), mean, atol=0.03)
    assert one.std(axis=0).max() < 0.1  # 0.6 in the data


@pytest.mark.parametrize("steps", [1, 10])
def test_a_gaussian_has_the_moments_of_its_own_recursion(steps):
    """For N(m, s²) the exact noise is affine in x, so the draws are Gaussian at every step."""
    gaussian = probes.Mixture(np.array([[0.2, -0.1]]), np.ones(1), 0.1)
    actions = draw(exact_prediction(gaussian, SCHEDULE), steps, steps)
    rates = discrete_rates(SCHEDULE, steps)
    kept = np.cumprod(1 - rates)
    mean, variance = np.zeros(2), 1.0
    for i in reversed(range(steps)):
        # ε = slope (x - √ᾱ m), put into the textbook's step.
        slope = np.sqrt(1 - kept[i]) / (kept[i] * 0.01 + 1 - kept[i])
        share = rates[i] / np.sqrt(1 - kept[i]) * slope
        mean = ((1 - share) * mean + share * np.sqrt(kept[i]) * gaussian.centres[0]) / np.sqrt(
            1 - rates[i]
        )
        variance = (1 - share) ** 2 / (1 - rates[i]) * variance + (rates[i] if i else 0.0)
    np.testing.assert_allclose(actions.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(actions.std(axis=0), np.sqrt(variance), rtol=0.06)
