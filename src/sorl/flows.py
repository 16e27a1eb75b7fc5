"""Flows from noise (t = 0) to actions (t = 1): interpolation, sampling, self-consistency.

A `Velocity` here is a function `(x, time, level) -> [*rows, action_size]`, x of the same shape,
with the observations already bound; `level` is κ = log2 k for steps of size 1/k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl.nn import ActionNetwork

Velocity = Callable[
    [Float[Array, "*rows action_size"], Float[Array, ""], Float[Array, ""]],
    Float[Array, "*rows action_size"],
]


def interpolate(
    noise: Float[Array, " action_size"],
    action: Float[Array, " action_size"],
    time: Float[Array, ""],
    *,
    noise_floor: float = 0.0,
) -> tuple[Float[Array, " action_size"], Float[Array, " action_size"]]:
    """The straight path from noise x0 to action x1 and its velocity.

    x_t = (1 - (1-e) t) x0 + t x1 and u = x1 - (1-e) x0, where e is the share of the noise that is
    left at t = 1: conditional flow matching with optimal-transport paths (Lipman et al. 2023).

    Returns:
        x_t and u, each `[action_size]`.
    """
    kept = 1.0 - noise_floor
    return (1.0 - kept * time) * noise + time * action, action - kept * noise


def flow_matching_error(
    network: ActionNetwork,
    observation: Float[Array, "rows observation_size"],
    action: Float[Array, "rows action_size"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, " rows"]:
    """(v(s, x_t, t) - (x1 - x0))², the mean over action entries, with t ~ U[0, 1), x0 ~ N(0, I).

    The flow-matching loss is its mean over rows, weighted or not.
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, action.shape)
    time = jax.random.uniform(time_key, action.shape[:1])
    x, velocity = jax.vmap(interpolate)(noise, action, time)
    return jnp.mean((network.batch(observation, x, time) - velocity) ** 2, axis=-1)


def one_size(network: ActionNetwork, observation: Float[Array, " observation_size"]) -> Velocity:
    """The velocity of a network that reads t alone: the same at every step size."""
    answer = network.bind(observation)
    return lambda x, time, _level: answer(x, time)


def euler_path(
    velocity: Velocity,
    x: Float[Array, "*rows action_size"],
    *,
    steps: int,
    start: int = 0,
    finest: int | None = None,
) -> Float[Array, "*rows action_size"]:
    """`steps` Euler steps from t = 0 to 1, unrolled, so that gradients flow through all.

    x ← x + (1/k) v(x, i/k, log2 k) for i = start..k-1; not clipped.

    Args:
        velocity: v, of one sample or, where x has rows, of all of them at the same t.
        x: where the path begins: noise, or the point of step `start`.
        steps: k.
        start: number of steps that lie behind x.
        finest: most steps whose size v knows; smaller ones ask it for the velocity of this size.
    """
    level = jnp.asarray(math.log2(min(steps, finest or steps)), jnp.float32)
    for i in range(start, steps):
        x = x + velocity(x, jnp.asarray(i / steps, jnp.float32), level) / steps
    return x


def euler_loop(
    velocity: Velocity,
    x: Float[Array, " action_size"],
    *,
    steps: int | Int[Array, ""],
    start: int = 0,
) -> Float[Array, " action_size"]:
    """The same path as a loop, for many steps, or a number known only when the program runs.

    In the latter case no gradient flows through it.
    """
    k = jnp.asarray(steps, jnp.float32)
    level = jnp.log2(k)

    def step(i: Int[Array, ""], x: Float[Array, " action_size"]) -> Float[Array, " action_size"]:
        return x + velocity(x, i.astype(jnp.float32) / k, level) / k

    return jax.lax.fori_loop(start, steps, step, x)


def stratified_levels(rows: int, levels: int) -> Int[Array, " rows"]:
    """Assign the levels κ = 0..levels-1 to rows in equal shares (the first get the remainder).

    The rows of a batch are random, so this is stratified sampling of κ. For 256 rows and 3
    levels: 86 rows of κ = 0, 85 of κ = 1, 85 of κ = 2. Of more levels than rows some get none.
    """
    return jnp.arange(rows, dtype=jnp.int32) * levels // rows


def self_consistency_target(
    velocity: Velocity,
    x: Float[Array, " action_size"],
    time: Float[Array, ""],
    level: Float[Array, ""],
) -> Float[Array, " action_size"]:
    """The velocity of one step of size d = 2^-κ that lands where two half steps land.

    v1 = v(x_t, t, κ+1); x' = x_t + (d/2) v1; v2 = v(x', t + d/2, κ+1); the target is
    (v1 + v2)/2 (shortcut models, Frans et al. 2025). Nothing is clipped; the caller stops the
    gradient.
    """
    half = 0.5 * jnp.exp2(-level)
    first = velocity(x, time, level + 1)
    second = velocity(x + half * first, time + half, level + 1)
    return (first + second) / 2
