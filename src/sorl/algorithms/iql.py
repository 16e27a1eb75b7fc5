"""IQL: implicit Q-learning with advantage-weighted regression (arXiv 2110.06169).

The critic never asks for an action outside the data (`sorl.implicit_q`); the policy is a Gaussian
of unit variance, fitted to the logged actions, the better ones the more:

    value       L_V = mean L_τ(min over heads of Q_φ̄(s, a) - V_ψ(s)),   L_τ(u) = |τ - 1(u < 0)| u²
    critic      L_Q = mean (Q_φ(s, a) - (r + γ · mask · V_ψ(s')))²
    policy      π(a | s) = N(μ_θ(s), I)
    actor       L_π = -mean w · log π(a | s) = mean w · ½ ‖a - μ_θ(s)‖²    its constant left out,
                w = stopgrad(min(exp(α · A), 100)),   A = min over heads of Q_φ̄(s, a) - V_ψ(s)
                with ψ after and φ̄ before its step of the same update

The minimum of L_π is μ(s) = E[w a | s] / E[w | s]: with α = 0 behaviour cloning, with a large α the
best of the logged actions.

Pseudocode of one update:

    ψ ← ψ - Adam(∇ψ L_V)
    φ ← φ - Adam(∇φ L_Q);  φ̄ ← φ̄ + τ_target (φ - φ̄)
    θ ← θ - Adam(∇θ L_π)

At test time: the mean, clipped to [-1, 1]; the verifier of best-of-N is min over heads of Q_φ.

Departures from the paper: the policy is trained beside the critic, not after it, which the paper
allows; its variance is fixed. Ours: `sampling_std`, the spread of the actions at test time: at 0,
as published, best-of-N has nothing to choose from. Networks and settings are those of the baselines
of FQL (arXiv 2502.02538).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl import gaussian, implicit_q, published
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.gaussian import DirectActor, ScoredGaussianPolicy
from sorl.hyperparameters import (
    check_between_0_and_1,
    check_discount,
    check_layers,
    check_not_negative,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.implicit_q import ImplicitQ
from sorl.losses import advantage_weights
from sorl.optim import adam, minimise
from sorl.types import Budget, Spec, Transition

HEADS = 2


class IQLState(eqx.Module):
    """Everything that training changes."""

    implicit_q: ImplicitQ
    actor: DirectActor
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class IQL(AbstractAlgorithm[IQLState]):
    """The hyperparameters of IQL.

    Args:
        inverse_temperature: α of the policy's weights; 0 clones, more is greedier. 10 is ours
            where no preset is published.
        expectile: τ of the value's loss in (0, 1); near 1 it approaches the best action's value.
        discount: γ in [0, 1).
        hidden: sizes of the hidden layers of every network.
        learning_rate: of every Adam.
        target_rate: τ_target of the target critic.
        sampling_std: standard deviation of actions at test time; 0 acts with the mean.
    """

    inverse_temperature: float = 10.0
    expectile: float = 0.9
    discount: float = 0.99
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    sampling_std: float = 0.0

    # α as in the runs published with FQL.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        {"humanoidmaze-medium-navigate": {"inverse_temperature": 10.0}},
        without=("target_aggregation",),
    )
    default_budget: ClassVar[Budget] = Budget(steps=1, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "inverse_temperature", "sampling_std")
        check_between_0_and_1(self, "expectile")
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> IQLState:
        """Fresh networks; the target starts as a copy."""
        critic_key, actor_key = jax.random.split(key)
        optimizer = self._optimizer()
        critic = implicit_q.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key)
        actor, actor_optimizer = gaussian.init(
            spec, self.hidden, optimizer, squash=False, key=actor_key
        )
        return IQLState(implicit_q=critic, actor=actor, actor_optimizer=actor_optimizer)

    def update(
        self,
        state: IQLState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[IQLState, Metrics]:
        """One step of value and critic, then one of the actor, which reads the new value."""
        optimizer = self._optimizer()
        critic, critic_metrics = implicit_q.update(
            state.implicit_q,
            batch,
            optimizer,
            discount=self.discount,
            expectile=self.expectile,
            target_rate=self.target_rate,
        )
        # The same pass of φ̄ over the logged actions as in V's loss: the compiler runs it once.
        before = dataclasses.replace(critic, target_critic=state.implicit_q.target_critic)
        advantage = implicit_q.advantage(before, batch)
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, batch, advantage),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        new_state = IQLState(implicit_q=critic, actor=actor, actor_optimizer=actor_optimizer)
        return new_state, {**critic_metrics, **actor_metrics}

    def policy(self, state: IQLState) -> ScoredGaussianPolicy:
        """The actor with the online critic as verifier."""
        return ScoredGaussianPolicy(
            actor=state.actor,
            critic=state.implicit_q.critic,
            aggregation="min",
            sampling_std=self.sampling_std,
        )

    def actor_loss(
        self, actor: DirectActor, batch: Transition, advantage: Float[Array, " batch"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_π, and as metrics the means of A and of its weights."""
        weights = advantage_weights(advantage, inverse_temperature=self.inverse_temperature)
        log_density = gaussian.log_density(batch.action, actor.batch(batch.observation))
        return -jnp.mean(weights * log_density), {
            "advantage": jnp.mean(advantage),
            "weight": jnp.mean(weights),
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
