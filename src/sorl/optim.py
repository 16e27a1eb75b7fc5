"""Gradient steps and target networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from sorl.algorithm import Metrics

Model = TypeVar("Model", bound=eqx.Module)


def adam(learning_rate: float, *, max_gradient_norm: float | None) -> optax.GradientTransformation:
    """Adam with β (0.9, 0.999), behind clipping of the global gradient norm where one is set."""
    clip = optax.identity() if max_gradient_norm is None else _clipping(max_gradient_norm)
    return optax.chain(clip, optax.adam(learning_rate))


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of the squares of all entries of all arrays.

    Optax's, but summed by products, which a CPU does several times as fast as its reductions.
    """
    flat = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    squares = [jnp.vdot(leaf, leaf, precision=jax.lax.Precision.HIGHEST) for leaf in flat]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def gradient_step(
    optimizer: optax.GradientTransformation,
    model: Model,
    optimizer_state: optax.OptState,
    gradient: Model,
) -> tuple[Model, optax.OptState, Float[Array, ""]]:
    """Move `model` by one step.

    Returns:
        The model, the optimiser's state and the gradient's global norm before clipping.
    """
    # Optax's types know arrays and containers; a module is a pytree like any other.
    updates, optimizer_state = optimizer.update(cast(optax.Updates, gradient), optimizer_state)
    return eqx.apply_updates(model, updates), optimizer_state, global_norm(gradient)


def minimise(
    name: str,
    loss: Callable[[Model], tuple[Float[Array, ""], Metrics]],
    optimizer: optax.GradientTransformation,
    model: Model,
    optimizer_state: optax.OptState,
) -> tuple[Model, optax.OptState, dict[str, Float[Array, ""]]]:
    """Move `model` by one step down the gradient of `loss`, which sees nothing else move.

    Args:
        name: what the metrics are called after: `critic` gives `critic/loss`,
            `critic/gradient_norm` and `critic/` before each of the loss's own.
        loss: from the model to its loss and further metrics.
        optimizer: the optimiser.
        model: the network.
        optimizer_state: the optimiser's state for it.

    Returns:
        The model, the optimiser's state and the metrics.
    """
    (value, metrics), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
    model, optimizer_state, norm = gradient_step(optimizer, model, optimizer_state, gradient)
    metrics = {"loss": value, **metrics, "gradient_norm": norm}
    return model, optimizer_state, {f"{name}/{key}": value for key, value in metrics.items()}


def moving_average(target: Model, online: Model, *, rate: float) -> Model:
    """Polyak averaging: target ← (1 - τ) · target + τ · online."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)


def _clipping(largest: float) -> optax.GradientTransformation:
    """Gradients whose global norm is above `largest` are scaled down to it."""

    def clip(updates: optax.Updates, parameters: optax.Params | None = None) -> optax.Updates:
        norm = global_norm(updates)
        scale = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda leaf: leaf * scale, updates)

    return optax.stateless(clip)
