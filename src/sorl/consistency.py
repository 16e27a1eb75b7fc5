"""Consistency models: from any noise level straight to the action (Song et al. 2023, 2303.01469).

A `Denoiser` here is a function `(x, level) -> [*rows, action_size]`, x `[*rows, action_size]` and
level `[*rows]`, with the observations already bound: the actions that it sees behind x = a + τ z,
where `level` is τ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.diffusion import strided
from sorl.nn import ActionNetwork

Denoiser = Callable[
    [Float[Array, "*rows action_size"], Float[Array, "*rows"]], Float[Array, "*rows action_size"]
]


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
    """The levels τ_1 < ... < τ_N of Karras et al. (2022, arXiv 2206.00364, equation 5).

        τ_n = (τ_1^(1/ρ) + (n - 1)/(N - 1) (τ_N^(1/ρ) - τ_1^(1/ρ)))^ρ

    Args:
        count: N, at least 2.
        lowest: τ_1, where an action counts as clean.
        highest: τ_N, where nothing of the action is left to be seen.
        curvature: ρ; the larger, the more of the levels are low.
        action_spread: the standard deviation of actions that the scalings reckon with.
    """

    count: int
    lowest: float = 0.002
    highest: float = 80.0
    curvature: float = 7.0
    action_spread: float = 0.5

    def values(self) -> Float[Array, " count"]:
        """All levels, ascending."""
        first, last = (end ** (1 / self.curvature) for end in (self.lowest, self.highest))
        levels = np.linspace(first, last, self.count) ** self.curvature
        # The first one to the bit, so that the boundary condition holds to the bit.
        levels[[0, -1]] = self.lowest, self.highest
        return jnp.asarray(levels, jnp.float32)


def denoiser(
    network: ActionNetwork, levels: NoiseLevels, observation: Float[Array, "*rows observation_size"]
) -> Denoiser:
    """f(x, τ) = c_skip(τ) x + c_out(τ) F(s, c_in(τ) x, ln(τ)/4), with f(x, τ_1) = x exactly.

    With the spread d of actions: c_skip = d² / ((τ - τ_1)² + d²),
    c_out = d (τ - τ_1) / √(τ² + d²), c_in = 1 / √(τ² + d²) (Song et al. 2023, appendix C); what F
    reads of τ is Karras et al.'s.
    """
    spread = levels.action_spread
    answer = network.bind(observation)

    def denoised(
        x: Float[Array, "*rows action_size"], level: Float[Array, "*rows"]
    ) -> Float[Array, "*rows action_size"]:
        above = level - jnp.float32(levels.lowest)
        size = jnp.sqrt(level**2 + spread**2)
        skip, out = spread**2 / (above**2 + spread**2), spread * above / size
        answered = answer(x / size[..., None], jnp.log(level) / 4)
        return skip[..., None] * x + out[..., None] * answered

    return denoised


def consistency_error(
    network: ActionNetwork,
    target_network: ActionNetwork,
    levels: NoiseLevels,
    observation: Float[Array, "rows observation_size"],
    action: Float[Array, "rows action_size"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, " rows"]:
    """(f_θ(a + τ_{n+1} z, τ_{n+1}) - stopgrad f_θ̄(a + τ_n z, τ_n))², the mean over action entries.

    n ~ Uniform{1..N-1} and z ~ N(0, I), the same z at both levels: consistency training (Song et
    al. 2023, section 5) with squared distance and weight 1.
    """
    index_key, noise_key = jax.random.split(key)
    index = jax.random.randint(index_key, action.shape[:1], 0, levels.count - 1)
    noise = jax.random.normal(noise_key, action.shape)
    values = levels.values()

    def at(
        network: ActionNetwork, level: Float[Array, " rows"]
    ) -> Float[Array, "rows action_size"]:
        x = action + level[:, None] * noise
        return denoiser(network, levels, observation)(x, level)

    target = jax.lax.stop_gradient(at(target_network, values[index]))
    return jnp.mean((at(network, values[index + 1]) - target) ** 2, axis=-1)


def consistency_path(
    denoise: Denoiser, levels: NoiseLevels, noise: Float[Array, "steps *rows action_size"]
) -> Float[Array, "*rows action_size"]:
    """Actions in [-1, 1] from `steps` draws of noise, unrolled, so that gradients flow through.

    The noise levels are τ_n for n - 1 in strided(N - 1, steps), from τ_N downwards; at the first
    the action is read off pure noise, at each further one noise is put back and taken away:

        x = f(τ_N z_1, τ_N);    x ← f(x + √(τ_n² - τ_1²) z_i, τ_n)

    (Song et al. 2023, algorithm 1), clipped to [-1, 1] each time. 1 <= steps <= N - 1.
    """
    values = levels.values()
    first, *others = reversed(strided(levels.count - 1, noise.shape[0]))

    def denoised(
        x: Float[Array, "*rows action_size"], level: Float[Array, ""]
    ) -> Float[Array, "*rows action_size"]:
        return jnp.clip(denoise(x, jnp.broadcast_to(level, x.shape[:-1])), -1, 1)

    x = denoised(values[first] * noise[0], values[first])
    for index, z in zip(others, noise[1:], strict=True):
        again = jnp.sqrt(values[index] ** 2 - values[0] ** 2)
        x = denoised(x + again * z, values[index])
    return x
