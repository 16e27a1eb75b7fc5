"""BC: behaviour cloning, a Gaussian of unit variance fitted to the logged actions.

    policy      π(a | s) = N(μ_θ(s), I)
    actor       L = -mean log π(a | s) = mean ½ ‖a - μ_θ(s)‖²        its constant left out

Rewards are not read. The minimum of L is μ(s) = E[a | s]: where the data take one of several
actions, the policy takes their average, which may be an action that nobody ever took.

Pseudocode of one update:

    θ ← θ - Adam(∇θ L)

At test time: the mean, clipped to [-1, 1]. Without a critic there is no best-of-N.

Maximum likelihood as in the baselines of FQL (arXiv 2502.02538), whose settings are the defaults.
Ours: `sampling_std`, the spread of the actions at test time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl import gaussian
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.gaussian import DirectActor, GaussianPolicy
from sorl.hyperparameters import (
    check_layers,
    check_not_negative,
    check_positive,
    make_plain,
)
from sorl.optim import adam, minimise
from sorl.types import Budget, Spec, Transition


class BCState(eqx.Module):
    """Everything that training changes."""

    actor: DirectActor
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class BC(AbstractAlgorithm[BCState]):
    """The hyperparameters of BC.

    Args:
        hidden: sizes of the hidden layers.
        learning_rate: of Adam.
        sampling_std: standard deviation of actions at test time; 0 acts with the mean.
    """

    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    sampling_std: float = 0.0

    # Nothing of it is published by environment.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    default_budget: ClassVar[Budget] = Budget(steps=1, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_not_negative(self, "sampling_std")

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> BCState:
        """A fresh network."""
        actor, actor_optimizer = gaussian.init(
            spec, self.hidden, self._optimizer(), squash=False, key=key
        )
        return BCState(actor=actor, actor_optimizer=actor_optimizer)

    def update(
        self,
        state: BCState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[BCState, Metrics]:
        """One step of the actor."""
        actor, actor_optimizer, metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, batch),
            self._optimizer(),
            state.actor,
            state.actor_optimizer,
        )
        return BCState(actor=actor, actor_optimizer=actor_optimizer), metrics

    def policy(self, state: BCState) -> GaussianPolicy:
        """The actor."""
        return GaussianPolicy(actor=state.actor, sampling_std=self.sampling_std)

    def actor_loss(self, actor: DirectActor, batch: Transition) -> tuple[Float[Array, ""], Metrics]:
        """-mean log π(a | s) without its constant."""
        log_density = gaussian.log_density(batch.action, actor.batch(batch.observation))
        return -jnp.mean(log_density), {}

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
