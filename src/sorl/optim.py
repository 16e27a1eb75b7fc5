"""Gradient steps and target networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float

from sorl.algorithm import Metrics

Model = TypeVar("Model", bound=eqx.Module)


def adam(learning_rate: float, *, max_gradient_norm: float | None) -> optax.GradientTransformation:
    """Adam with β (0.9, 0.999), behind clipping of the global gradient norm where one is set."""
    clip = (
        optax.identity()
        if max_gradient_norm is None
        else optax.clip_by_global_norm(max_gradient_norm)
    )
    return optax.chain(clip, optax.adam(learning_rate))


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
    return eqx.apply_updates(model, updates), optimizer_state, optax.tree.norm(gradient)


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
