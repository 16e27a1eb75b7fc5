"""Loss terms that several algorithms share."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.nn import Critic

Aggregation = Literal["mean", "min"]

LARGEST_WEIGHT = 100.0


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


def critic_loss(
    critic: Critic,
    observation: Float[Array, "rows observation_size"],
    action: Float[Array, "rows action_size"],
    target: Float[Array, " rows"],
    *extra: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over rows and heads of (Q(s, a, extra...) - y)², and the mean of Q as a metric."""
    q = critic.batch(observation, action, *extra)
    return jnp.mean((q - target[:, None]) ** 2), {"q": jnp.mean(q)}


def expectile_loss(
    difference: Float[Array, "*batch"], *, expectile: float
) -> Float[Array, "*batch"]:
    """|τ - 1(u < 0)| · u²: asymmetric squares, whose minimum is the τ-expectile (IQL, section 4).

    Args:
        difference: u, target minus prediction.
        expectile: τ in (0, 1); 0.5 is half the square, near 1 the maximum.
    """
    return jnp.where(difference < 0, 1 - expectile, expectile) * difference**2


def advantage_weights(
    advantage: Float[Array, "*batch"], *, inverse_temperature: float
) -> Float[Array, "*batch"]:
    """stopgrad(min(exp(α · A), 100)): weights of advantage-weighted regression, as IQL caps them.

    Args:
        advantage: A = Q - V.
        inverse_temperature: α; 0 weighs all alike.
    """
    # Capped before the exponential: infinity times 0 in a gradient would be NaN.
    most = math.log(LARGEST_WEIGHT)
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(inverse_temperature * advantage, most)))


def normalised_q_loss(values: Float[Array, " batch"]) -> Float[Array, ""]:
    """-mean(q) / stopgrad(mean|q|): the policy's Q loss, free of the scale of rewards."""
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(values)))
    return -jnp.mean(values) / jnp.maximum(scale, jnp.finfo(values.dtype).tiny)
