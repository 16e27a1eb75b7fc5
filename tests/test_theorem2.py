"""Theorem 2: the known flows, the bound on velocities whose error is known, and a real training."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

import numpy_networks as slow
from sorl import checkpoint, flows
from sorl.algorithms.sorl import SORL
from sorl.errors import InputError
from sorl.experiments.theorem2 import (
    Setting,
    draw,
    findings,
    lipschitz,
    measure,
    measuring,
    settings,
    summary,
    training,
)
from sorl.experiments.theorem2.bound import Errors, one_constant, step_by_step
from sorl.experiments.theorem2.measuring import Probe
from sorl.experiments.theorem2.mixtures import Mixture, star
from sorl.experiments.theorem2.training import Shortcut
from sorl.experiments.theorem2.transport import coupled, wasserstein
from sorl.nn import ActionNetwork
from sorl.types import Spec, Transition

E = 1e-5
TWO = star(2, radius=0.5, std=0.25)
GAUSSIAN = Mixture([[0.3, -0.2]], 0.4)
TINY = Setting(
    2, updates=(20, 1_500), hidden=(32, 32), discretization=8, samples=300, transport_samples=300
)


# The flow in closed form.


@pytest.mark.parametrize("time", [0.0, 0.4, 0.7])
def test_drift_equals_a_weighted_mean_over_actions(time, rng):
    """E[x1 - (1-e) x0 | x_t = z]: every action weighs as much as the noise that it would need."""
    action = TWO.sample(400_000, rng)
    a = 1 - (1 - E) * time
    z = np.array([[0.3, -0.1], [-0.6, 0.5]])
    for point, found in zip(z, TWO.drift(z, time), strict=True):
        noise = (point - time * action) / a
        weight = np.exp(-(noise**2).sum(1) / 2)
        weight /= weight.sum()
        target = action - (1 - E) * noise
        mean = weight @ target
        error = np.sqrt(weight**2 @ (target - mean) ** 2)
        assert error.max() < 0.02
        np.testing.assert_array_less(np.abs(found - mean), 4 * error)


@pytest.mark.parametrize("time", [0.0, 0.35, 0.8, 1.0])
def test_derivatives_equal_finite_differences(time, rng):
    z, tiny = TWO.interpolate(rng.normal(size=(50, 2)), TWO.sample(50, rng), time), 1e-5
    for column in range(2):
        shift = tiny * np.eye(2)[column]
        slope = (TWO.drift(z + shift, time) - TWO.drift(z - shift, time)) / (2 * tiny)
        np.testing.assert_allclose(TWO.derivative(z, time)[:, :, column], slope, atol=1e-7)
    shift = tiny * TWO.drift(z, time)
    along = TWO.drift(z + shift, time + tiny) - TWO.drift(z - shift, time - tiny)
    np.testing.assert_allclose(TWO.acceleration(z, time), along / (2 * tiny), atol=1e-5)


@pytest.mark.parametrize("behaviour", [TWO, GAUSSIAN, Mixture([[0.5], [-0.5]], 0.25)])
def test_lipschitz_constants_hold_everywhere_and_are_attained(behaviour, rng):
    # Around 0 two components weigh the same, and far away one of them weighs all.
    special = np.outer([0.0, 1e3, -1e3], np.eye(behaviour.dimension)[0])
    z = np.concatenate([rng.normal(size=(2_000, behaviour.dimension)), special])
    for time in np.linspace(0, 1, 21):
        derivative = behaviour.derivative(z, time)
        largest = np.linalg.norm(derivative, 2, axis=(1, 2)).max()
        step = np.linalg.norm(np.eye(behaviour.dimension) + derivative / 4, 2, axis=(1, 2)).max()
        bounds = behaviour.lipschitz(time), behaviour.step_lipschitz(time, 0.25)
        assert largest <= bounds[0] + 1e-12
        assert step <= bounds[1] + 1e-12
        assert bounds[1] <= 1 + bounds[0] / 4 + 1e-12
        if behaviour is not TWO:  # one component, or two of equal weight around 0
            np.testing.assert_allclose((largest, step), bounds, rtol=1e-9)


def test_acceleration_is_bounded_by_the_papers_constants(rng):
    """‖d/dt v_t(z_t)‖ ≤ ‖∂_t v_t‖ + L_v √M_v: how the paper's constants enter the bound."""
    noise, action, tiny = rng.normal(size=(500, 2)), TWO.sample(500, rng), 1e-5
    for time in np.linspace(0.1, 0.9, 9):
        z = TWO.interpolate(noise, action, time)
        partial = (TWO.drift(z, time + tiny) - TWO.drift(z, time - tiny)) / (2 * tiny)
        nothing = np.zeros_like(z)
        found = coupled(TWO.acceleration(z, time), nothing)
        paper = TWO.lipschitz(time) * coupled(TWO.drift(z, time), nothing)
        assert found <= coupled(partial, nothing) + paper


def test_exact_flow_carries_noise_to_the_behaviour(rng):
    noise = rng.normal(size=(20_000, 2))
    path = TWO.flow(noise, 8, substeps=16)
    np.testing.assert_array_equal(path[0], noise)
    for i in (4, 8):
        z = TWO.interpolate(rng.normal(size=(20_000, 2)), TWO.sample(20_000, rng), i / 8)
        np.testing.assert_allclose(path[i].mean(0), z.mean(0), atol=0.02)
        np.testing.assert_allclose(np.cov(path[i].T), np.cov(z.T), atol=0.02)
    fresh, others = TWO.sample(500, rng), TWO.sample(500, rng)
    assert wasserstein(path[8][:500], fresh) < 1.3 * wasserstein(fresh, others)
    np.testing.assert_allclose(TWO.flow(noise[:100], 128)[-1], path[-1][:100], atol=1e-6)


def test_flow_of_one_gaussian_is_a_scaling(rng):
    noise = rng.normal(size=(10, 2))
    path = GAUSSIAN.flow(noise, 64)
    for i in (0, 16, 40, 64):
        t = i / 64
        expected = t * GAUSSIAN.means[0] + noise * math.sqrt(
            (1 - (1 - E) * t) ** 2 + (0.4 * t) ** 2
        )
        np.testing.assert_allclose(path[i], expected, atol=1e-8)


# The bound as algebra.


def slow_bound(errors: Errors, step_lipschitz, steps: int) -> float:
    """(1) to (3) of the proof as they stand there, one step at a time."""

    def error(k: int, i: int) -> float:
        if k == errors.finest:
            return errors.flow_matching[i] / k + errors.acceleration[i] / (2 * k**2)
        first, second = error(2 * k, 2 * i), error(2 * k, 2 * i + 1)
        own = errors.self_consistency[k][i] / k
        return own + step_lipschitz[2 * k][2 * i + 1] * first + second

    total = sum(error(steps, i) * np.prod(step_lipschitz[steps][i + 1 :]) for i in range(steps))
    return errors.left_noise + total


def random_errors(rng, finest: int = 8) -> Errors:
    powers = [2**power for power in range(int(math.log2(finest)))]
    return Errors(
        rng.uniform(size=finest),
        rng.uniform(size=finest),
        {k: rng.uniform(size=k) for k in powers},
        0.1,
    )


def test_step_by_step_equals_the_proof(rng):
    errors = random_errors(rng)
    step_lipschitz = {k: rng.uniform(0.5, 1.5, size=k) for k in (1, 2, 4, 8)}
    terms = step_by_step(errors, step_lipschitz)
    assert list(terms) == [8, 4, 2, 1]
    for steps, found in terms.items():
        np.testing.assert_allclose(found.bound, slow_bound(errors, step_lipschitz, steps))
    alone = dataclasses.replace(errors, flow_matching=np.zeros(8), acceleration=np.zeros(8))
    for steps, found in step_by_step(alone, step_lipschitz).items():
        np.testing.assert_allclose(found.self_consistency, terms[steps].self_consistency)
        np.testing.assert_allclose((found.discretisation, found.flow_matching), (0.1, 0))


@given(
    st.floats(0.01, 20),
    npst.arrays(np.float64, 3, elements=st.just(0.0) | st.floats(1e-3, 3)),
)
def test_one_constant_is_the_solved_recursion_and_below_its_exponentials(constant, sizes):
    accelerations, flow, consistency = sizes
    powers = (1, 2, 4, 8, 16)
    errors = Errors(
        np.full(16, flow),
        np.full(16, accelerations),
        {k: np.full(k, consistency) for k in powers[:-1]},
    )
    found = one_constant(errors, constant)
    steps = step_by_step(errors, {k: np.full(k, 1 + constant / k) for k in powers})
    for k in powers:
        np.testing.assert_allclose(
            dataclasses.astuple(found[k]), dataclasses.astuple(steps[k]), rtol=1e-9
        )
        h, finest = 1 / k, 1 / 16
        sizes_between = [1 / k for k in powers[:-1] if 1 / k <= h]
        bracket = math.exp((h - finest) * constant / 2) * (flow + accelerations * finest / 2)
        bracket += sum(consistency * math.exp((h - g) * constant / 2) for g in sizes_between)
        assert found[k].bound <= math.expm1(constant) / constant * bracket * (1 + 1e-9)


def test_too_large_a_bound_is_infinite_and_no_error_stays_none():
    errors = Errors(np.zeros(128), np.ones(128), {2**p: np.zeros(2**p) for p in range(7)})
    terms = one_constant(errors, 1e9)[64]
    assert (terms.discretisation, terms.flow_matching, terms.self_consistency) == (math.inf, 0, 0)


# The bound on velocities whose distance is known.


class Known(eqx.Module):
    """A velocity with chosen errors for a mixture of equal variances, written anew in JAX.

    At the finest size it is the exact drift plus `flow_error`; at each coarser one exactly where
    all its finest steps lead, plus the entry of `consistency_error` of its level.
    """

    behaviour: Mixture = eqx.field(static=True)
    finest: int = eqx.field(static=True)
    flow_error: jax.Array
    consistency_error: jax.Array

    def drift(self, x, time):
        b = self.behaviour
        a, means = 1 - (1 - E) * time, jnp.asarray(b.means, jnp.float32)
        variance = a**2 + time**2 * b.std**2
        distances = jnp.sum((x[None] - time * means) ** 2, axis=1)
        weight = jax.nn.softmax(
            jnp.log(jnp.asarray(b.weights, jnp.float32)) - distances / (2 * variance)
        )
        mean = weight @ means
        slope = (time * b.std**2 - (1 - E) * a) / variance
        return mean + slope * (x - time * mean)

    def __call__(self, x, time, level):
        count = jnp.round(self.finest * jnp.exp2(-level)).astype(jnp.int32)

        def step(i, y):
            return y + (self.drift(y, time + i / self.finest) + self.flow_error) / self.finest

        end = jax.lax.fori_loop(0, count, step, x)
        return (end - x) * jnp.exp2(level) + self.consistency_error[level.astype(jnp.int32)]


FINEST = 32


@pytest.fixture(scope="module")
def gaussian_probe():
    setting = Setting(
        2, discretization=FINEST, samples=4_000, transport_samples=200, jacobian_samples=8
    )
    return Probe.of(setting, GAUSSIAN)


def known_rows(probe, *, flow=0.0, consistency=0.0, level=0):
    """Rows by number of steps of the Gaussian's velocity with errors along (0.6, 0.8)."""
    direction = jnp.asarray([0.6, 0.8])
    errors = jnp.zeros((6, 2)).at[level].set(consistency * direction)
    velocity = Known(GAUSSIAN, FINEST, flow * direction, errors)
    return {int(row["h"]): row for row in probe.measure(velocity, 1.0)}


def gaussian_factors():
    """1 + h β of the finest steps of one Gaussian; each is the step's Lipschitz constant."""
    t = np.arange(FINEST) / FINEST
    a = 1 - (1 - E) * t
    return 1 + (t * 0.16 - (1 - E) * a) / (a**2 + 0.16 * t**2) / FINEST


def check(rows):
    for row in rows.values():
        assert row["coupled"] <= row["stepwise_bound"] * 1.001
        assert row["stepwise_bound"] <= row["bound"] * 1.001
        assert row["w2_common_noise"] <= row["coupled"] * 1.1  # of fewer samples


def test_exact_drift_is_off_by_its_discretisation_alone_and_the_bound_is_tight(gaussian_probe):
    """π_k of one Gaussian is N(μ, Π(1 + h β)² I): W2 in closed form."""
    rows = known_rows(gaussian_probe)
    check(rows)
    w2 = math.sqrt(2) * abs(np.prod(gaussian_factors()) - math.sqrt(0.16 + E**2))
    for row in rows.values():
        np.testing.assert_allclose(row["coupled"], w2, rtol=0.05)
        np.testing.assert_allclose(row["stepwise_self_consistency"], 0, atol=1e-4)
        np.testing.assert_allclose(row["stepwise_flow_matching"], 0, atol=1e-4)
        # So no smaller constant would do: half the discretisation term is violated.
        assert row["coupled"] <= row["stepwise_discretisation"] < 1.25 * row["coupled"]


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_constant_error_of_the_drift_moves_the_policy_by_the_flow_matching_term(
    gaussian_probe, size
):
    rows = known_rows(gaussian_probe, flow=size)
    check(rows)
    factors = gaussian_factors()
    moved = size / FINEST * sum(np.prod(factors[i + 1 :]) for i in range(FINEST))
    scale = math.sqrt(2) * abs(np.prod(factors) - math.sqrt(0.16))
    for row in rows.values():
        np.testing.assert_allclose(row["eps_fm"], size, rtol=1e-3)
        np.testing.assert_allclose(row["coupled"], math.hypot(moved, scale), rtol=0.03)
        np.testing.assert_allclose(row["stepwise_flow_matching"], moved, rtol=1e-3)
        assert row["coupled"] > row["stepwise_bound"] / 2


def test_inconsistency_of_one_size_moves_this_size_by_the_self_consistency_term(gaussian_probe):
    size, level = 0.5, 2
    rows = known_rows(gaussian_probe, consistency=size, level=level)
    check(rows)
    factors = gaussian_factors().reshape(2**level, -1).prod(1)
    moved = size / 2**level * sum(np.prod(factors[i + 1 :]) for i in range(2**level))
    exact = known_rows(gaussian_probe)
    for steps, row in rows.items():
        if steps > 2**level:
            np.testing.assert_allclose(row["coupled"], exact[steps]["coupled"], rtol=1e-5)
    row = rows[2**level]
    np.testing.assert_allclose(row["eps_sc"], size, rtol=1e-3)
    np.testing.assert_allclose(row["stepwise_self_consistency"], moved, rtol=1e-3)
    np.testing.assert_allclose(row["coupled"], moved, rtol=0.05)
    assert row["coupled"] > row["stepwise_bound"] / 2


def test_exact_drift_of_a_mixture_has_no_flow_matching_error(rng):
    """Two closed forms, NumPy's and the one above, and the proven Lipschitz constants."""
    setting = Setting(2, discretization=8, samples=500, transport_samples=100, jacobian_samples=8)
    probe = Probe.of(setting, TWO)
    velocity = Known(TWO, 8, jnp.zeros(2), jnp.zeros((4, 2)))
    errors = probe.errors(velocity)
    np.testing.assert_allclose(errors.flow_matching, 0, atol=2e-5)
    proven = [TWO.step_lipschitz(i / 8, 1 / 8) for i in range(8)]
    x = end = probe.flow[0]
    for i in range(8):
        x = x + TWO.drift(x, i / 8) / 8
    step_lipschitz = {8: np.array(proven)} | {k: np.ones(k) for k in (1, 2, 4)}
    distance = coupled(x, probe.flow[-1])
    assert 0.01 < distance <= step_by_step(errors, step_lipschitz)[8].bound
    end, _, seen = probe._walk(velocity, 8)
    np.testing.assert_allclose(end, x, atol=1e-5)
    assert (seen <= np.array(proven) + 1e-5).all()


def test_derivatives_are_taken_around_the_exact_flow_at_the_time_of_the_step(monkeypatch):
    setting = Setting(2, discretization=8, samples=500, transport_samples=2, jacobian_samples=2_000)
    probe = Probe.of(setting, TWO)
    points = []
    monkeypatch.setattr(
        lipschitz,
        "seen",
        lambda velocity, x, time, level: (points.append((time, x)), (1.0, 1.0))[1],
    )
    probe._walk(Known(TWO, 8, jnp.zeros(2), jnp.zeros((4, 2))), 2)
    assert [time for time, _ in points] == [0, 0.5]
    for (_, x), exact in zip(points, probe.flow[::4], strict=False):
        square = (np.asarray(x) ** 2).sum(1).mean()
        np.testing.assert_allclose(square, (exact**2).sum(1).mean(), rtol=0.1)


# A network.


@pytest.fixture(scope="module")
def network():
    network = ActionNetwork(Spec(1, 2), (32, 32), scalars=2, key=jax.random.key(3))
    return jax.tree.map(lambda x: x * 1.3, network)


def test_policy_is_measured_where_the_sampler_ends(network):
    probe = Probe.of(dataclasses.replace(TINY, samples=10, transport_samples=2), TWO)
    for steps in (1, 4, 8):
        end, _, _ = probe._walk(Shortcut(network), steps)
        for x, noise in zip(end, probe.flow[0], strict=True):
            loop = flows.euler_loop(Shortcut(network), jnp.asarray(noise, jnp.float32), steps=steps)
            np.testing.assert_allclose(x, loop, atol=1e-5)


def test_errors_of_a_network_equal_plain_numpy(network):
    probe = Probe.of(dataclasses.replace(TINY, samples=20, transport_samples=2), TWO)
    errors = probe.errors(Shortcut(network))
    s = np.zeros(1)

    def velocity(x, time, level):
        return np.array([slow.velocity(network, s, row, time, level) for row in x])

    for i in (0, 5):
        z = (1 - (1 - E) * i / 8) * probe.noise + i / 8 * probe.action
        expected = coupled(velocity(z, i / 8, 3.0), TWO.drift(z, i / 8))
        np.testing.assert_allclose(errors.flow_matching[i], expected, rtol=1e-4)
    z = (1 - (1 - E) / 2) * probe.noise + probe.action / 2
    first = velocity(z, 0.5, 2.0)
    second = velocity(z + first / 4, 0.75, 2.0)
    expected = coupled(velocity(z, 0.5, 1.0), (first + second) / 2)
    np.testing.assert_allclose(errors.self_consistency[2][1], expected, rtol=1e-3)


def test_seen_lipschitz_constant_is_below_the_proven_one(network, rng):
    x = jnp.asarray(rng.normal(size=(300, 2)), jnp.float32)
    time, level = jnp.float32(0.5), jnp.float32(1)
    slope, step = lipschitz.seen(Shortcut(network), x, time, level)
    velocity = jax.vmap(lambda point: Shortcut(network)(point, time, level))
    near = x + 1e-2 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    ratio = jnp.linalg.norm(velocity(near) - velocity(x), axis=1) / jnp.linalg.norm(
        near - x, axis=1
    )
    assert 0.5 * slope < ratio.max() < 1.1 * slope
    assert slope < lipschitz.of_the_weights(network)
    assert abs(step - 1) <= slope / 2 + 1e-5
    x = np.linspace(-6, 6, 100_001)
    gelu = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(lipschitz.gelu_slope(), np.gradient(gelu, x).max(), rtol=1e-5)


def test_training_is_adam_on_sorls_own_losses():
    """Three updates, done again from the loss, by Optax and plain averages."""
    setting = dataclasses.replace(TINY, updates=(1, 3), batch_size=16)
    found = [state.actor for _, state in training.trained(setting)]
    sorl = SORL(discretization=8, backprop_steps=1, hidden=(32, 32), learning_rate=1e-3)
    key, init_key = jax.random.split(jax.random.key(0))
    actor = target = sorl.init(Spec(1, 2), key=init_key).actor
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = optimizer.init(eqx.filter(actor, eqx.is_array))
    gradient_of = eqx.filter_jit(eqx.filter_grad(sorl.behaviour_loss, has_aux=True))
    by_hand = []
    for index in range(3):
        data_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
        component_key, noise_key = jax.random.split(data_key)
        component = jax.random.categorical(
            component_key, jnp.log(jnp.arange(1.0, 5.0)), shape=(16,)
        )
        means = jnp.asarray([[0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])[component]
        action = means + 0.25 * jax.random.normal(noise_key, (16, 2))
        s, nothing = jnp.zeros((16, 1)), jnp.zeros(16)
        batch = Transition(s, action, nothing, nothing, s, action, nothing)
        gradient, _ = gradient_of(actor, target, batch, key=loss_key)
        change, state = optimizer.update(gradient, state)
        actor = eqx.apply_updates(actor, change)
        target = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, target, actor)
        by_hand.append(actor)
    for network, expected in zip(found, (by_hand[0], by_hand[2]), strict=True):
        for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_laptop_trainings_are_cut_into_chunks_that_are_counted(monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 2)
    monkeypatch.setattr(training, "_train", lambda sorl, rows, state, *rest: state)
    setting = dataclasses.replace(TINY, updates=(3, 4, 9))
    ends = [updates for updates, _ in training.trained(setting)]
    assert ends == [2, 3, 4, 6, 8, 9]
    for place, done in enumerate([0, *ends]):
        assert training.chunks(setting, done) == 6 - place
        later = training.trained(setting, (done, training.fresh(setting)))
        assert [updates for updates, _ in later] == ends[place:]


def test_flops_equal_the_count_by_hand():
    """Of both losses forward and backward, but into no input, and two half steps of the target."""
    setting = dataclasses.replace(TINY, updates=(2, 7), batch_size=16)
    weights = [
        leaf for leaf in jax.tree.leaves(training.fresh(setting).actor) if jnp.ndim(leaf) == 2
    ]
    first, *others = [weight.size for weight in weights]
    forward, backward = first + sum(others), first + 2 * sum(others)
    assert training.flops(setting) == 7 * 16 * 2 * (2 * (forward + backward) + 2 * forward)


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_a_measurement_that_was_stopped_goes_on_to_the_same_rows(at, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "CHUNK", 2)
    monkeypatch.setattr(measuring, "CHECKPOINT_SECONDS", 0.0)
    setting = dataclasses.replace(TINY, updates=(3, 5), samples=20, transport_samples=10)
    whole = measure(setting)
    said = []

    def stop(done, total):
        said.append((done, total))
        if len(said) == at:
            raise KilledError

    with pytest.raises(KilledError):
        measure(setting, stop, tmp_path / "kept")
    trained = [end for end in (checkpoint.latest(tmp_path / "kept"),) if end]
    counted = []
    found = measure(setting, lambda done, total: counted.append((done, total)), tmp_path / "kept")
    assert found == whole
    assert counted[-1][0] == counted[-1][1] == said[0][1]
    assert len(counted) == said[0][1] - counted[0][0] + 1
    assert bool(trained) == (counted[0][0] > 1), "what was saved is not done again"


@pytest.fixture(scope="module")
def trained_rows():
    calls = []
    rows = measure(TINY, lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    return rows


def test_bound_holds_for_a_trained_network_and_training_brings_it_near(trained_rows):
    assert [(row["updates"], row["h"]) for row in trained_rows] == [
        (updates, steps) for updates in TINY.updates for steps in (1, 2, 4, 8)
    ]
    for row in trained_rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["w2_common_noise"] <= row["coupled"] * (1 + 1e-9)
        assert row["coupled"] <= row["stepwise_bound"] <= row["bound"]
        assert row["bound"] <= min(row["bound_drift"], row["bound_product"])
        assert row["w2"] <= row["coupled"] + 2 * row["w2_floor"]
        assert row["lipschitz"] < row["lipschitz_product"]
        for prefix in ("", "stepwise_"):
            parts = ("discretisation", "flow_matching", "self_consistency")
            total = sum(row[prefix + part] for part in parts)
            np.testing.assert_allclose(row[prefix + "bound"], total)
    first, last = trained_rows[:4], trained_rows[4:]
    for before, after in zip(first, last, strict=True):
        for name in ("coupled", "w2", "eps_fm", "stepwise_bound"):
            assert after[name] < 0.7 * before[name]
    assert [row["eps_sc"] for row in last][-1] == 0 < last[0]["eps_sc"]


def test_findings_and_figure_say_what_the_rows_hold(trained_rows):
    sentences = findings(trained_rows)
    assert sentences[0].startswith("The bound step by step holds in 8 of 8 cells")
    assert any(text.startswith("Dimension 2: between 20 and 1,500 updates") for text in sentences)
    # It could fail: a row whose policy is farther away than its bound is counted.
    wrong = {**trained_rows[3], "coupled": trained_rows[3]["stepwise_bound"] * 1.01}
    assert findings([wrong, *trained_rows[:3]])[0].startswith(
        "The bound step by step holds in 3 of 4"
    )
    png = io.BytesIO()
    figure = draw(trained_rows, "tiny")
    figure.savefig(png)
    assert png.getvalue().startswith(b"\x89PNG")
    assert any("1 seed. tiny" in text.get_text() for text in figure.texts)
    for use in (findings, lambda rows: draw(rows, "")):
        with pytest.raises(InputError, match="no rows"):
            use([])


def test_rank_correlation_is_spearmans(rng):
    pair = rng.integers(0, 5, size=(2, 20)).tolist()
    expected: Any = spearmanr(*pair)
    np.testing.assert_allclose(summary.rank_correlation(*pair), expected.statistic)
    assert math.isnan(summary.rank_correlation([1, 1], [1, 2]))


# Transport and settings.


@pytest.mark.parametrize("dimension", [1, 3])
def test_transport_is_the_best_assignment(dimension, rng):
    first, second = rng.normal(size=(60, dimension)), rng.normal(size=(60, dimension)) + 0.5
    cost = ((first[:, None] - second[None]) ** 2).sum(-1)
    best = cost[linear_sum_assignment(cost)].mean()
    np.testing.assert_allclose(wasserstein(first, second), math.sqrt(best))
    assert wasserstein(first, first) == pytest.approx(0, abs=1e-7)
    assert wasserstein(first, second) <= coupled(first, second)


def test_missing_pot_is_named(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(InputError, match=r"install sorl\[reproduce\]"):
        wasserstein(rng.normal(size=(3, 2)), rng.normal(size=(3, 2)))


def test_settings_differ_and_can_be_written():
    for scale in ("laptop", "gpu-hour", "paper"):
        found = settings(scale)
        assert len({s.dimension for s in found}) >= 3
        assert len({s.seed for s in found}) >= 3
        assert len(set(found)) == len(found)
        texts = {json.dumps(dataclasses.asdict(setting)) for setting in found}
        assert len(texts) == len(found)
        for text in texts:
            values: dict[str, Any] = json.loads(text)
            lists = {name: tuple(values[name]) for name in ("updates", "hidden")}
            assert Setting(**{**values, **lists}) in found
    with pytest.raises(InputError, match="laptop, gpu-hour or paper"):
        settings("huge")


@pytest.mark.parametrize(
    "fields",
    [
        {"dimension": 0},
        {"discretization": 12},
        {"discretization": 1},
        {"updates": ()},
        {"updates": (10, 10)},
        {"updates": (0, 10)},
        {"updates": (20, 10)},
        {"std": 0.0},
        {"samples": 100, "transport_samples": 200},
        {"hidden": ()},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(InputError):
        Setting(**{"dimension": 2, **fields})
