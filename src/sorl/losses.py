"""Loss terms that several algorithms share."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Aggregation = Literal["mean", "min"]


def aggregate(values: Float[Array, "... heads"], how: Aggregation) -> Float[Array, ...]:
    """Combine the heads of a critic: their mean, or their minimum (pessimism)."""
    return jnp.mean(values, axis=-1) if how == "mean" else jnp.min(values, axis=-1)


def td_target(
    reward: Float[Array, "*batch"],
    mask: Float[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    *,
    discount: float,
) -> Float[Array, "*batch"]:
    """y = stopgrad(r + γ · mask · Q̄'): the one-step temporal-difference target."""
    return jax.lax.stop_gradient(reward + discount * mask * next_value)


def normalised_q_loss(values: Float[Array, " batch"]) -> Float[Array, ""]:
    """-mean(q) / stopgrad(mean|q|): the policy's Q loss, free of the scale of rewards."""
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(values)))
    return -jnp.mean(values) / jnp.maximum(scale, jnp.finfo(values.dtype).tiny)
