"""Policies that act in one pass of a network μ(s), or by Gaussian draws around it.

    a = clip(μ(s) + σ ε, -1, 1),   ε ~ N(0, I)
    log π(a | s) = -½ ‖a - μ(s)‖² - (d/2) log 2π      for σ = 1 and d action entries

Training by likelihood takes σ = 1, where it is squared error. Acting takes a σ of its own, most
often 0: published evaluations act with μ(s), and only best-of-N asks for candidates that differ.

Methods that share it differ in how μ and the critic are trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from sorl import encoders
from sorl.algorithm import AbstractPolicy
from sorl.critic_policy import AbstractCriticPolicy, check_one_pass
from sorl.encoders import Encoder
from sorl.losses import Aggregation
from sorl.nn import MLP, Critic
from sorl.types import Spec


class DirectActor(eqx.Module):
    """μ(s): an action from an observation alone, in one pass.

    Args:
        spec: what observations are, and sizes of actions.
        hidden: sizes of the hidden layers.
        squash: whether tanh brings every entry into (-1, 1); otherwise they are not bounded.
    """

    mlp: MLP
    encoder: Encoder | None
    squash: bool = eqx.field(static=True)

    def __init__(self, spec: Spec, hidden: Sequence[int], *, squash: bool, key: PRNGKeyArray):
        self.encoder, features, key = encoders.begin(spec, key)
        self.mlp = MLP(features, hidden, spec.action_size, layer_norm=False, key=key)
        self.squash = squash

    @property
    def action_size(self) -> int:
        """Entries of the answer."""
        return self.mlp.layers[-1].bias.shape[-1]

    def __call__(
        self, observation: Float[Array, " observation_size"]
    ) -> Float[Array, " action_size"]:
        """μ of one observation."""
        answer = self.mlp(encoders.encode(self.encoder, observation))
        return jnp.tanh(answer) if self.squash else answer

    def batch(
        self, observation: Float[Array, "rows observation_size"]
    ) -> Float[Array, "rows action_size"]:
        """μ of many observations."""
        answer = self.mlp.batch(encoders.encode_batch(self.encoder, observation))
        return jnp.tanh(answer) if self.squash else answer


class _DirectPolicy(AbstractPolicy):
    """What both policies below do alike."""

    actor: eqx.AbstractVar[DirectActor]
    sampling_std: eqx.AbstractVar[float]

    def check_steps(self, steps: int) -> None:
        """Raise `InputError` unless `steps` is 1."""
        check_one_pass(steps)

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        """[action_size]."""
        return (self.actor.action_size,)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        """clip(μ(s) + σ ε, -1, 1); `steps` plays no part."""
        return jnp.clip(self.actor(observation) + self.sampling_std * noise, -1, 1)


class GaussianPolicy(_DirectPolicy):
    """Draws around μ(s), without a verifier.

    Attributes:
        actor: μ.
        sampling_std: σ of the draws; 0 acts with μ(s).
    """

    actor: DirectActor
    sampling_std: float = eqx.field(static=True)


class ScoredGaussianPolicy(_DirectPolicy, AbstractCriticPolicy):
    """Draws around μ(s), with a critic as verifier.

    Attributes:
        actor: μ.
        critic: the online critic.
        aggregation: how the verifier combines the critic's heads.
        sampling_std: σ of the draws; 0 acts with μ(s), whatever the number of candidates.
    """

    actor: DirectActor
    critic: Critic
    aggregation: Aggregation = eqx.field(static=True)
    sampling_std: float = eqx.field(static=True)


def init(
    spec: Spec,
    hidden: Sequence[int],
    optimizer: optax.GradientTransformation,
    *,
    squash: bool,
    key: PRNGKeyArray,
) -> tuple[DirectActor, optax.OptState]:
    """A fresh μ and its optimiser's state."""
    actor = DirectActor(spec, hidden, squash=squash, key=key)
    return actor, optimizer.init(eqx.filter(actor, eqx.is_array))


def log_density(
    action: Float[Array, "*batch action_size"], mean: Float[Array, "*batch action_size"]
) -> Float[Array, "*batch"]:
    """-½ ‖a - μ‖²: log N(a; μ, I) without its constant -(d/2) log 2π, so it is never above 0."""
    return -0.5 * squared_distance(action, mean)


def squared_distance(
    x: Float[Array, "*batch action_size"], y: Float[Array, "*batch action_size"]
) -> Float[Array, "*batch"]:
    """‖x - y‖²: the sum of squares over action entries, not their mean."""
    return jnp.sum((x - y) ** 2, axis=-1)
