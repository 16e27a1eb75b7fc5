"""A velocity, which takes one sample, on many rows at one time and one step size."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from sorl.flows import Velocity, self_consistency_target

Values = npt.NDArray[np.float64]


@eqx.filter_jit
def at(
    velocity: Velocity,
    x: Float[Array, "rows dimension"],
    time: Float[Array, ""],
    level: Float[Array, ""],
) -> Float[Array, "rows dimension"]:
    """s(x, t, h) of rows of x at one t and h = 2^-level."""
    return jax.vmap(velocity, in_axes=(0, None, None))(x, time, level)


@eqx.filter_jit
def residual(
    velocity: Velocity,
    x: Float[Array, "rows dimension"],
    time: Float[Array, ""],
    level: Float[Array, ""],
) -> Float[Array, "rows dimension"]:
    """What self-consistency misses: s(x, t, h) less the mean of its two half steps."""

    def one(point: Float[Array, " dimension"]) -> Float[Array, " dimension"]:
        return velocity(point, time, level) - self_consistency_target(velocity, point, time, level)

    return jax.vmap(one)(x)


def inputs(
    x: Values, time: float, level: float
) -> tuple[Float[Array, "rows dimension"], Float[Array, ""], Float[Array, ""]]:
    """What the functions here read, of NumPy's numbers."""
    return jnp.asarray(x, jnp.float32), jnp.float32(time), jnp.float32(level)
