"""Lipschitz constants of a network: one that is proven and one that is seen."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sorl.experiments.theorem2.training import OBSERVATION_SIZE
from sorl.flows import Velocity
from sorl.nn import ActionNetwork


def of_the_weights(network: ActionNetwork) -> float:
    """A proven Lipschitz constant in x: the product of the layers' norms and of GELU's slopes.

    Far above the true one, since no input stretches most in every layer. Of the first layer only
    the weights that read x count.
    """
    inputs = slice(OBSERVATION_SIZE, OBSERVATION_SIZE + network.action_size)
    weights = [np.asarray(layer.weight, np.float64) for layer in network.mlp.layers]
    weights[0] = weights[0][inputs]
    norms = [np.linalg.norm(weight, 2) for weight in weights]
    return float(np.prod(norms)) * gelu_slope() ** (len(norms) - 1)


def gelu_slope() -> float:
    """The steepest slope of the GELU of `sorl.nn`, some 1.13, at a point near 1.4."""
    x = jnp.linspace(0, 3, 3001)
    slopes = jax.vmap(jax.grad(lambda value: jax.nn.gelu(value, approximate=True)))(x)
    return float(slopes.max())


@eqx.filter_jit
def seen(
    velocity: Velocity,
    x: Float[Array, "rows dimension"],
    time: Float[Array, ""],
    level: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest spectral norms of derivatives in x over some points.

    Lower estimates of Lipschitz constants: elsewhere a derivative may be larger.

    Returns:
        That of s(x, t, h) and that of one step x + h s(x, t, h), with h = 2^-level.
    """
    derivative = jax.vmap(lambda point: jax.jacfwd(velocity)(point, time, level))(x)
    step = jnp.eye(x.shape[1])[None] + jnp.exp2(-level) * derivative

    def largest(matrices: Float[Array, "rows dimension dimension"]) -> Float[Array, ""]:
        return jnp.max(jnp.linalg.norm(matrices, ord=2, axis=(1, 2)))

    return largest(derivative), largest(step)
