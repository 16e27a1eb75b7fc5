"""FBRAC: behaviour-regularised actor-critic with a flow, Q backpropagated through its steps.

π(s) with noise z is the end of M = 10 Euler steps of v_θ(s, x, t) from z, clipped to [-1, 1].

    flow matching      L_FM = mean (v_θ(s, x_t, t) - (x1 - x0))²,  x_t = (1 - t) x0 + t x1,
                       x1 = the logged action, x0 ~ N(0, I), t ~ U[0, 1)
    Q                  L_Q = -mean q / stopgrad(mean |q|), or -mean q without `normalise_q`;
                       q = mean over heads of Q_φ(s, π(s)), z ~ N(0, I)
    actor              L = L_Q + α · L_FM
    critic             L = mean (Q_φ(s, a) - stopgrad(r + γ · mask · agg Q_φ̄(s', π(s'))))²

Pseudocode of one update (`batch` of B rows):

    φ ← φ - Adam(∇φ critic loss);  φ̄ ← φ̄ + τ (φ - φ̄)
    θ ← θ - Adam(∇θ actor loss; the gradient of L_Q runs through all M steps)

The actor's loss reads φ after the critic's step of the same update. At test time: any number of
Euler steps, and best-of-N with agg Q_φ(s, ·) as verifier; L_Q saw M steps alone.

Baseline of the FQL paper (Park et al. 2025, arXiv 2502.02538): BRAC (arXiv 1911.11361) with a flow.

Ours: Q is normalised by default, so that one α suits rewards of any scale (the paper's loss is
`normalise_q=False`; no α that goes with it is published where it could be read) and α = 1; the mean
over heads in L_Q even where targets take the minimum; the critic after its step; LayerNorm's
epsilon is 1e-6.
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

from sorl import flow_policy, published, td_critic
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.flow_policy import FlowPolicy, flow_actions
from sorl.flows import flow_matching_error
from sorl.hyperparameters import (
    check_at_least,
    check_choices,
    check_discount,
    check_layers,
    check_not_negative,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.losses import Aggregation, aggregate, normalised_q_loss
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam, minimise
from sorl.td_critic import TDCritic
from sorl.types import Budget, Spec, Transition

HEADS = 2


class FBRACState(eqx.Module):
    """Everything that training changes."""

    td_critic: TDCritic
    actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class FBRAC(AbstractAlgorithm[FBRACState]):
    """The hyperparameters of FBRAC.

    Args:
        flow_matching_coef: α, weight of L_FM beside the Q loss; 1 is ours.
        normalise_q: whether the Q loss is divided by the mean |q|; ours.
        flow_steps: M, Euler steps of the policy in training.
        discount: γ in [0, 1).
        target_aggregation: agg, how heads are combined in targets and in the verifier.
        hidden: sizes of the hidden layers of every network.
        learning_rate: of both Adams.
        target_rate: τ of the target critic.
    """

    flow_matching_coef: float = 1.0
    normalise_q: bool = True
    flow_steps: int = 10
    discount: float = 0.99
    target_aggregation: Aggregation = "mean"
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005

    # Discount and aggregation; no α is published where it could be read.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets()
    default_budget: ClassVar[Budget] = Budget(steps=10, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "flow_matching_coef")
        check_at_least(self, 1, "flow_steps")
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    @property
    def own_budget(self) -> Budget:
        """As many steps as the losses act in."""
        return Budget(self.flow_steps, 1)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> FBRACState:
        """Fresh networks; the target starts as a copy."""
        actor_key, critic_key = jax.random.split(key)
        optimizer = self._optimizer()
        actor, actor_optimizer = flow_policy.init(spec, self.hidden, optimizer, key=actor_key)
        critic = td_critic.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key)
        return FBRACState(td_critic=critic, actor=actor, actor_optimizer=actor_optimizer)

    def update(
        self,
        state: FBRACState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[FBRACState, Metrics]:
        """One step of the critic, then one of the actor, which reads the critic after its step."""
        critic_key, actor_key = jax.random.split(key)
        optimizer = self._optimizer()

        noise = jax.random.normal(critic_key, batch.action.shape)
        critic, critic_metrics = td_critic.update(
            state.td_critic,
            batch,
            flow_actions(state.actor, batch.next_observation, noise, steps=self.flow_steps),
            optimizer,
            discount=self.discount,
            aggregation=self.target_aggregation,
            target_rate=self.target_rate,
        )
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, critic.critic, batch, key=actor_key),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        new_state = FBRACState(td_critic=critic, actor=actor, actor_optimizer=actor_optimizer)
        return new_state, {**critic_metrics, **actor_metrics}

    def policy(self, state: FBRACState) -> FlowPolicy:
        """The flow with the online critic as verifier."""
        return FlowPolicy(
            velocity=state.actor,
            critic=state.td_critic.critic,
            aggregation=self.target_aggregation,
        )

    def actor_loss(
        self, actor: ActionNetwork, critic: Critic, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_Q + α · L_FM, and as metrics its two terms before α."""
        q_key, flow_key = jax.random.split(key)
        noise = jax.random.normal(q_key, batch.action.shape)
        actions = flow_actions(actor, batch.observation, noise, steps=self.flow_steps)
        q = aggregate(critic.batch(batch.observation, actions), "mean")
        q_loss = normalised_q_loss(q) if self.normalise_q else -jnp.mean(q)
        flow_matching_loss = jnp.mean(
            flow_matching_error(actor, batch.observation, batch.action, key=flow_key)
        )
        return q_loss + self.flow_matching_coef * flow_matching_loss, {
            "q_loss": q_loss,
            "flow_matching_loss": flow_matching_loss,
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
