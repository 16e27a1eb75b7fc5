"""Gradient steps and target networks."""

from __future__ import annotations

from typing import TypeVar, cast

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float

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


def moving_average(target: Model, online: Model, *, rate: float) -> Model:
    """Polyak averaging: target ← (1 - τ) · target + τ · online."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)
