"""The policy of a flow: its path against NumPy, its gradient, its verifier, its steps."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
from flow_baselines import ROWS, noise_of, slow_flow_action
from one_member import SPEC
from sorl import flow_policy
from sorl.errors import InputError
from sorl.flow_policy import FlowPolicy, flow_actions
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam
from sorl.types import Spec


@pytest.fixture(scope="module")
def velocity() -> ActionNetwork:
    network, _ = flow_policy.init(
        SPEC, (16, 16), adam(1e-3, max_gradient_norm=None), key=jax.random.key(0)
    )
    return network


def policy_with(velocity: ActionNetwork, aggregation) -> FlowPolicy:
    critic = Critic(Spec(4, 3), 0, (16, 16), heads=2, key=jax.random.key(1))
    return FlowPolicy(velocity=velocity, critic=critic, aggregation=aggregation)


@eqx.filter_jit
def sample(policy, observation, steps, key):
    return policy.sample(observation, steps=steps, key=key)


# Powers of two, others, and more than any training samples with.
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 33])
def test_samples_equal_numpy(rng, velocity, steps):
    policy, key, s = policy_with(velocity, "min"), jax.random.key(steps), rng.normal(size=4)
    found = sample(policy, jnp.asarray(s, jnp.float32), steps, key)
    noise = np.asarray(jax.random.normal(key, (3,)), np.float64)
    np.testing.assert_allclose(found, slow_flow_action(velocity, s, noise, steps), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 10])
def test_actions_of_rows_equal_numpy(rng, velocity, steps):
    key, s = jax.random.key(3), rng.normal(size=(ROWS, 4))
    noise = noise_of(key)
    found = eqx.filter_jit(flow_actions)(
        velocity, jnp.asarray(s, jnp.float32), jnp.asarray(noise, jnp.float32), steps=steps
    )
    exact = [slow_flow_action(velocity, s[i], noise[i], steps) for i in range(ROWS)]
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert np.abs(exact).max() == 1  # something was clipped


@pytest.mark.parametrize(("start", "steps"), [(0, 3), (1, 2), (5, 10)])
def test_renoising_enters_the_path_in_the_middle(rng, velocity, start, steps):
    s, a, key = rng.normal(size=4), rng.uniform(-1, 1, 3), jax.random.key(steps)
    noise, t = np.asarray(jax.random.normal(key, (3,)), np.float64), start / steps
    x = (1 - t) * noise + t * a
    for i in range(start, steps):
        x = x + slow.mlp(velocity.mlp, np.concatenate([s, x, [i / steps]])) / steps
    found = policy_with(velocity, "mean").renoise(
        jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32), start=start, steps=steps, key=key
    )
    np.testing.assert_allclose(found, np.clip(x, -1, 1), atol=1e-4)


def test_gradient_runs_through_every_step(velocity):
    """Against differences of the slow path, for the weightiest entry of each layer."""
    s, noise, direction = np.full(4, 0.3), np.array([0.1, -0.2, 0.4]), np.array([1.0, -2.0, 0.5])

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient_of(network):
        rows = flow_actions(
            network,
            jnp.asarray(s[None], jnp.float32),
            jnp.asarray(noise[None], jnp.float32),
            steps=4,
        )
        return jnp.sum(rows[0] * jnp.asarray(direction, jnp.float32))

    gradient = gradient_of(velocity)
    assert np.abs(slow_flow_action(velocity, s, noise, 4)).max() < 1  # nothing is clipped
    for layer in range(3):
        found = np.asarray(gradient.mlp.layers[layer].weight)
        entry = np.unravel_index(np.abs(found).argmax(), found.shape)

        def moved(by, layer=layer, entry=entry):
            weight = np.asarray(velocity.mlp.layers[layer].weight, np.float64).copy()
            weight[entry] += by
            network = eqx.tree_at(lambda n: n.mlp.layers[layer].weight, velocity, weight)
            return slow_flow_action(network, s, noise, 4) @ direction

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert found[entry] == pytest.approx(difference, rel=1e-2)
        assert abs(difference) > 0.01


def test_a_clipped_entry_passes_no_gradient(velocity):
    @eqx.filter_jit
    @eqx.filter_grad
    def gradient_of(network, noise):
        return jnp.sum(flow_actions(network, jnp.zeros((2, 4)), noise, steps=4))

    inside, outside = (
        jax.tree.leaves(gradient_of(velocity, jnp.full((2, 3), size))) for size in (0.1, 50.0)
    )
    assert any(np.any(leaf) for leaf in inside)
    assert all(not np.any(leaf) for leaf in outside)


@pytest.mark.parametrize(("aggregation", "combine"), [("mean", np.mean), ("min", np.min)])
def test_the_verifier_combines_the_heads_whatever_the_steps(rng, velocity, aggregation, combine):
    policy = policy_with(velocity, aggregation)
    s, a = rng.normal(size=4), rng.uniform(-1, 1, 3)
    exact = combine(slow.q_values(policy.critic, s, a))
    score = eqx.filter_jit(policy.score)
    for steps in (1, 10):
        found = score(jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32), steps=steps)
        assert found == pytest.approx(exact, rel=1e-3, abs=1e-5)


def test_steps_a_flow_can_take(velocity):
    policy = policy_with(velocity, "mean")
    for steps in (1, 3, 10, 1024):
        policy.check_steps(steps)
    for steps in (0, -1, 1025):
        with pytest.raises(InputError, match=f"cannot act in {steps} sampling steps"):
            policy.check_steps(steps)
