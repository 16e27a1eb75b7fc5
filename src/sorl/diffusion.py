"""Diffusion from actions (t = 0) to noise (t = 1) and back: schedule, loss, ancestral sampler.

A `NoisePrediction` here is a function `(x, time) -> [action_size]` for ONE sample, with the
observation already bound: what it takes for the noise in x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.nn import ActionNetwork

NoisePrediction = Callable[
    [Float[Array, " action_size"], Float[Array, ""]], Float[Array, " action_size"]
]


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """The variance-preserving schedule: x_t = α(t) a + σ(t) ε, α² + σ² = 1, for t in [0, 1].

    The noise rate β(t) = β0 + (β1 - β0) t grows linearly, which gives

        α(t)² = exp(-β0 t - (β1 - β0) t² / 2)

    (Song et al. 2021, arXiv 2011.13456, appendix C). Read at t = i/T it is the discrete schedule
    1 - exp(-β0/T - (β1 - β0) (2i - 1) / (2 T²)), i = 1..T, in which diffusion policies are given.

    Args:
        lowest_rate: β0.
        highest_rate: β1.
    """

    lowest_rate: float
    highest_rate: float

    def log_signal(self, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """log α(t)."""
        growth = self.highest_rate - self.lowest_rate
        return -self.lowest_rate * time / 2 - growth * time**2 / 4

    def signal(self, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """α(t): what is left of the action."""
        return jnp.exp(self.log_signal(time))

    def noise(self, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """σ(t): how much noise is in; exact near t = 0 too."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_signal(time)))

    def noised(
        self,
        action: Float[Array, "*rows action_size"],
        noise: Float[Array, "*rows action_size"],
        time: Float[Array, "*rows"],
    ) -> Float[Array, "*rows action_size"]:
        """x_t = α(t) a + σ(t) ε."""
        return self.signal(time)[..., None] * action + self.noise(time)[..., None] * noise


def noise_prediction_error(
    network: ActionNetwork,
    schedule: VariancePreserving,
    observation: Float[Array, "rows observation_size"],
    action: Float[Array, "rows action_size"],
    time: Float[Array, " rows"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, " rows"]:
    """(ε_θ(s, x_t, t) - ε)², the mean over action entries, with ε ~ N(0, I).

    The loss of denoising diffusion (Ho et al. 2020, arXiv 2006.11239, equation 14) is its mean
    over rows; how t is drawn is the caller's.
    """
    noise = jax.random.normal(key, action.shape)
    x = schedule.noised(action, noise, time)
    return jnp.mean((network.batch(observation, x, time) - noise) ** 2, axis=-1)


def strided(count: int, steps: int) -> list[int]:
    """`steps` of the numbers 1..count, evenly strided, ascending, `count` always among them.

    The i-th is i · count / steps, rounded to the nearest with halves up; all are different for
    1 <= steps <= count.
    """
    return [(2 * i * count + steps) // (2 * steps) for i in range(1, steps + 1)]


def ancestral_path(
    noise_prediction: NoisePrediction,
    schedule: VariancePreserving,
    noise: Float[Array, "steps action_size"],
    *,
    trained_steps: int,
) -> Float[Array, " action_size"]:
    """One action in [-1, 1] by ancestral sampling in `steps` of the `trained_steps` times.

    With T = trained_steps the times are t_i = strided(T, steps)[i] / T, and t_0 = 0. From the first
    draw of the noise at t = 1, a step from time t to the time s before it is the DDPM step of the
    schedule that knows only the times kept (Nichol & Dhariwal 2021, arXiv 2102.09672, section 4):

        â = clip((x - σ_t ε_θ(x, t)) / α_t, -1, 1)
        β = 1 - (α_t / α_s)²
        x ← (α_s β â + (α_t / α_s) σ_s² x) / σ_t² + √β z,    z the next draw, 0 in the last step.

    √β is the larger of the two standard deviations of Ho et al. (2020, section 3.2). One step alone
    answers about the mean of all actions, whatever their modes; a few steps blur the modes.
    """
    indices = strided(trained_steps, noise.shape[0])
    time = jnp.asarray([index / trained_steps for index in reversed(indices)])
    earlier = jnp.asarray([index / trained_steps for index in reversed([0, *indices[:-1]])])
    added_noise = jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])])

    def step(
        x: Float[Array, " action_size"],
        inputs: tuple[Float[Array, ""], Float[Array, ""], Float[Array, " action_size"]],
    ) -> tuple[Float[Array, " action_size"], None]:
        t, s, z = inputs
        kept = jnp.exp(schedule.log_signal(t) - schedule.log_signal(s))
        added = -jnp.expm1(2 * (schedule.log_signal(t) - schedule.log_signal(s)))
        action = (x - schedule.noise(t) * noise_prediction(x, t)) / schedule.signal(t)
        action = jnp.clip(action, -1, 1)
        mean = schedule.signal(s) * added * action + kept * schedule.noise(s) ** 2 * x
        return mean / schedule.noise(t) ** 2 + jnp.sqrt(added) * z, None

    x, _ = jax.lax.scan(step, noise[0], (time, earlier, added_noise))
    return jnp.clip(x, -1, 1)  # â already is, but for rounding
