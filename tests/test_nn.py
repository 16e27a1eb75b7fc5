"""Networks: sizes of the paper, agreement with plain NumPy, one sample as in a batch."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_networks as slow
from sorl.nn import LAYER_NORM_EPSILON, MLP, ActionNetwork, Critic, LayerNorm, heads_apart
from sorl.types import Spec


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(module, eqx.is_array)))


def test_parameter_counts_are_the_papers():
    """Observation 28, action 5: 808,965 and 1,620,994 parameters."""
    hidden = (512,) * 4
    assert count(ActionNetwork(Spec(28, 5), hidden, scalars=2, key=jax.random.key(0))) == 808_965
    assert count(Critic(Spec(28, 5), 1, hidden, heads=2, key=jax.random.key(0))) == 1_620_994


def test_mlp_equals_numpy_with_and_without_layer_norm(rng):
    x = rng.normal(size=6)
    for layer_norm in (False, True):
        network = MLP(6, (16, 8), 3, layer_norm=layer_norm, key=jax.random.key(1))
        found = network(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, slow.mlp(network, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 17, 512])
def test_layer_norm_and_its_gradient_equal_plain_differentiation(rng, size):
    """The gradient is written out in `sorl.layers`; here the definition is differentiated."""
    x, scale, offset, weight = jnp.asarray(rng.normal(size=(4, size)), jnp.float32)
    norm = eqx.tree_at(lambda n: (n.scale, n.offset), LayerNorm(size), (scale, offset))

    def plain(x, scale, offset):
        standard = (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + LAYER_NORM_EPSILON)
        return jnp.vdot(weight, standard * scale + offset)

    def ours(x, scale, offset):
        one = eqx.tree_at(lambda n: (n.scale, n.offset), norm, (scale, offset))
        return jnp.vdot(weight, one(x))

    np.testing.assert_allclose(
        norm(3 * x + 1), slow.layer_norm(3 * x + 1, scale, offset), rtol=1e-4, atol=1e-5
    )
    found = jax.grad(ours, argnums=(0, 1, 2))(x, scale, offset)
    expected = jax.grad(plain, argnums=(0, 1, 2))(x, scale, offset)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_glorot_uniform():
    weight = np.asarray(
        MLP(300, (500,), 1, layer_norm=False, key=jax.random.key(2)).layers[0].weight
    )
    bound = np.sqrt(6 / (300 + 500))
    assert np.abs(weight).max() <= bound
    np.testing.assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.01)


def test_heads_are_different_networks_and_batches_equal_single_samples(rng):
    critic = Critic(Spec(3, 2), 1, (16, 16), heads=2, key=jax.random.key(3))
    s, a = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    values = jax.vmap(lambda s, a: critic(s, a, jnp.float32(4)))(
        jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32)
    )
    expected = [slow.q_values(critic, s[i], a[i], 4.0) for i in range(7)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(values[:, 0] - values[:, 1]).min() > 1e-4


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_heads_taken_apart_give_the_same_values(rng, heads):
    class TwoCritics(eqx.Module):
        critics: list[Critic]
        scale: jax.Array

    keys = jax.random.split(jax.random.key(4), 2)
    stacked = TwoCritics(
        [Critic(Spec(3, 2), 1, (16, 16), heads=heads, key=key) for key in keys], jnp.ones(3)
    )
    apart = heads_apart(stacked)
    for critic in apart.critics:
        assert isinstance(critic.mlps, tuple)
        assert len(critic.mlps) == heads
    assert apart.scale is stacked.scale
    s, a = (jnp.asarray(rng.normal(size=(7, n)), jnp.float32) for n in (3, 2))
    for one, other in zip(stacked.critics, apart.critics, strict=True):
        expected = one.batch(s, a, jnp.float32(4))
        assert expected.shape == (7, heads)
        mapped = jax.vmap(lambda s, a, c=other: c(s, a, jnp.float32(4)))(s, a)
        np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.batch(s, a, jnp.float32(4)), mapped, rtol=1e-5, atol=1e-6)
