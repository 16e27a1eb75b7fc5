"""IFQL: implicit flow Q-learning, a cloned flow with best-of-N by an implicit Q critic.

    critic, value      implicit Q-learning: see `sorl.implicit_q`; expectile τ_e = 0.9
    flow matching      L_FM = mean (v_θ(s, x_t, t) - (x1 - x0))²,  x_t = (1 - t) x0 + t x1,
                       x1 = the logged action, x0 ~ N(0, I), t ~ U[0, 1)

Pseudocode of one update (`batch` of B rows):

    ψ, φ, φ̄   one update of implicit Q-learning
    θ ← θ - Adam(∇θ L_FM)

The policy never sees the critic in training. At test time it draws N actions with k Euler steps
and acts with the one of the highest min over heads of Q_φ(s, a).

Baseline of the FQL paper (Park et al. 2025, arXiv 2502.02538): IDQL (arXiv 2304.10573) with a flow
for its diffusion model.

Ours: one learning rate for all three networks, 10 steps by default, LayerNorm's epsilon is 1e-6.
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

from sorl import flow_policy, implicit_q, published
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.flow_policy import FlowPolicy
from sorl.flows import flow_matching_error
from sorl.hyperparameters import (
    check_between_0_and_1,
    check_discount,
    check_layers,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.implicit_q import ImplicitQ
from sorl.nn import ActionNetwork
from sorl.optim import adam, minimise
from sorl.types import Budget, Spec, Transition

HEADS = 2


class IFQLState(eqx.Module):
    """Everything that training changes."""

    implicit_q: ImplicitQ
    actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class IFQL(AbstractAlgorithm[IFQLState]):
    """The hyperparameters of IFQL; defaults are the published runs'.

    Args:
        expectile: τ_e in (0, 1) of the value's regression; near 1 it is the best logged action's.
        discount: γ in [0, 1).
        hidden: sizes of the hidden layers of every network.
        learning_rate: of all three Adams.
        target_rate: τ of the target critic.
    """

    expectile: float = 0.9
    discount: float = 0.99
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005

    # The critic's heads are always combined by their minimum.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        without=("target_aggregation",)
    )
    default_budget: ClassVar[Budget] = Budget(steps=10, best_of=32)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_between_0_and_1(self, "expectile")
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> IFQLState:
        """Fresh networks; the target starts as a copy."""
        actor_key, critic_key = jax.random.split(key)
        optimizer = self._optimizer()
        actor, actor_optimizer = flow_policy.init(spec, self.hidden, optimizer, key=actor_key)
        critic = implicit_q.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key)
        return IFQLState(implicit_q=critic, actor=actor, actor_optimizer=actor_optimizer)

    def update(
        self,
        state: IFQLState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[IFQLState, Metrics]:
        """One step of value and critic, one of the flow."""
        critic, critic_metrics = implicit_q.update(
            state.implicit_q,
            batch,
            self._optimizer(),
            discount=self.discount,
            expectile=self.expectile,
            target_rate=self.target_rate,
        )
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, batch, key=key),
            self._optimizer(),
            state.actor,
            state.actor_optimizer,
        )
        new_state = IFQLState(implicit_q=critic, actor=actor, actor_optimizer=actor_optimizer)
        return new_state, {**critic_metrics, **actor_metrics}

    def policy(self, state: IFQLState) -> FlowPolicy:
        """The flow with the online critic as verifier."""
        return FlowPolicy(velocity=state.actor, critic=state.implicit_q.critic, aggregation="min")

    def actor_loss(
        self, actor: ActionNetwork, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_FM, and the same as a metric."""
        loss = jnp.mean(flow_matching_error(actor, batch.observation, batch.action, key=key))
        return loss, {"flow_matching_loss": loss}

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
