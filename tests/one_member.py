"""What tests of one algorithm share: batches, one member's training, steps done by hand."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import probes
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
from sorl.data.dataset import Dataset
from sorl.inference import act
from sorl.training import train
from sorl.types import Budget, Spec, Transition

SPEC = Spec(observation_size=4, action_size=3)


def batch_of(rng: np.random.Generator, rows: int) -> Transition:
    """Random transitions of `SPEC`; both masks have zeros and ones."""

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Transition(
        observation=normal(rows, 4),
        action=jnp.clip(normal(rows, 3), -1, 1),
        reward=normal(rows),
        mask=jnp.asarray(np.arange(rows) % 3 > 0, jnp.float32),
        next_observation=normal(rows, 4),
        next_action=jnp.clip(normal(rows, 3), -1, 1),
        next_action_mask=jnp.asarray(np.arange(rows) % 2, jnp.float32),
    )


def float64(batch: Transition) -> Transition:
    """The batch as float64 NumPy."""
    return Transition(*(np.asarray(value, np.float64) for value in batch))  # pyright: ignore[reportArgumentType]


def learn(algorithm: AbstractAlgorithm[Any], dataset: Dataset, *, updates: int) -> Any:
    """The state of seed 0, on task 0, after `updates` updates by the public path."""
    *_, last = train(algorithm, dataset, seeds=(0,), tasks=(0,), updates=updates, chunk=updates)
    assert not last.stopped
    return jax.tree.map(lambda leaf: leaf[0], last.state.algorithm)


def action_in(policy: AbstractPolicy, state: int) -> np.ndarray:
    """What a policy that does not draw does in a state of `probes`."""
    observation = jnp.asarray(probes.STATES[state])
    return np.asarray(act(policy, observation, budget=Budget(1, 1), key=jax.random.key(0)))


def gradient_of(loss: Any, state: Any) -> Any:
    """The gradient of `loss(state)` with respect to every array of floats in `state`."""
    arrays, rest = eqx.partition(state, eqx.is_inexact_array)
    return jax.jit(jax.grad(lambda arrays: loss(eqx.combine(arrays, rest))))(arrays)


def none_moves(gradient: Any) -> bool:
    return all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def all_move(gradient: Any) -> bool:
    return all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def first_adam_step(loss: Any, model: Any, *, learning_rate: float) -> tuple[Any, float, float]:
    """The model after Adam's first step down `loss(model)`, the loss and the gradient's norm.

    With both moments bias-corrected to g and g², the first step is g / (|g| + ε).
    """
    value, gradient = jax.jit(jax.value_and_grad(loss))(model)
    assert all_move(gradient)
    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(gradient)))

    moved = jax.tree.map(lambda p, g: p - learning_rate * g / (jnp.abs(g) + 1e-8), model, gradient)
    return moved, float(value), norm


def same(left: Any, right: Any) -> bool:
    """Equal leaf by leaf, bit for bit."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def assert_same(left: Any, right: Any, *, atol: float) -> None:
    """Equal leaf by leaf, to `atol`."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
