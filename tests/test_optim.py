"""Steps of gradients: the norm and its limit as optax has them, summed in another way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sorl.optim import adam, global_norm

GRADIENTS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=16))


def tree_of(gradient):
    return {"layer": jnp.asarray(gradient), "bias": jnp.asarray(gradient[0]), "scalar": 0.5}


@given(GRADIENTS)
@example(np.zeros((3, 4), np.float32))
def test_the_norm_is_that_of_all_entries_together(gradient):
    tree = tree_of(gradient)
    together = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    expected = np.linalg.norm(together.astype(np.float64))
    np.testing.assert_allclose(global_norm(tree), expected, rtol=1e-5)


@given(GRADIENTS, st.floats(0.125, 256, width=32))
@example(np.zeros((3, 4), np.float32), 1.0)
def test_clipping_is_that_of_optax(gradient, largest):
    tree = jax.tree.map(jnp.asarray, tree_of(gradient))
    ours = adam(1e-3, max_gradient_norm=largest)
    theirs = optax.chain(optax.clip_by_global_norm(largest), optax.adam(1e-3))
    state, expected_state = ours.init(tree), theirs.init(tree)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    for _ in range(2):
        step, state = ours.update(tree, state)
        expected, expected_state = theirs.update(tree, expected_state)
        for one, other in zip(jax.tree.leaves(step), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_without_a_limit_a_gradient_of_any_size_passes():
    optimizer = adam(0.1, max_gradient_norm=None)
    gradient = {"a": jnp.asarray([3e4, 0.0])}
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    moment = optax.tree.get(state, "mu")["a"]
    np.testing.assert_allclose(moment, [3e3, 0.0], rtol=1e-5)


def test_the_norm_of_nothing_is_zero():
    assert global_norm({}) == pytest.approx(0.0)
