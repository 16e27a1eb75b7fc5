"""FAWAC: advantage-weighted actor-critic with a flow, which clones the better actions the more.

π(s) with noise z is the end of M = 10 Euler steps of v_θ(s, x, t) from z, clipped to [-1, 1].

    critic             L = mean (Q_φ(s, a) - stopgrad(r + γ · mask · agg Q_φ̄(s', π(s'))))²
    value              L_V = mean (V_ψ(s) - agg Q_φ̄(s, a))²
    actor              L = mean w · (v_θ(s, x_t, t) - (x1 - x0))²,  x_t = (1 - t) x0 + t x1,
                       x1 = the logged action, x0 ~ N(0, I), t ~ U[0, 1),
                       w = stopgrad(min(exp(α · A), 100)),   A = agg Q_φ̄(s, a) - V_ψ(s)

With the cap out of reach the flow's distribution becomes β(a | s) exp(α · Q(s, a)) up to a constant
of s, where β is the behaviour: V only keeps the weights near 1.

Pseudocode of one update (`batch` of B rows):

    φ ← φ - Adam(∇φ critic loss);  φ̄ ← φ̄ + τ (φ - φ̄)
    ψ ← ψ - Adam(∇ψ L_V)
    θ ← θ - Adam(∇θ actor loss), with A of the new φ̄ and ψ

At test time: any number of Euler steps, and best-of-N with agg Q_φ(s, ·) as verifier.

Baseline of the FQL paper (Park et al. 2025, arXiv 2502.02538): AWAC (arXiv 2006.09359) with a flow.

Ours: α = 10, for none is published where it could be read; the advantage reads the target critic,
as V's regression does; the order within an update; LayerNorm's epsilon is 1e-6.
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
from sorl.losses import Aggregation, advantage_weights, aggregate
from sorl.nn import ActionNetwork, ValueNetwork
from sorl.optim import adam, minimise
from sorl.td_critic import TDCritic
from sorl.types import Budget, Spec, Transition

HEADS = 2


class FAWACState(eqx.Module):
    """Everything that training changes."""

    td_critic: TDCritic
    value: ValueNetwork
    value_optimizer: optax.OptState
    actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class FAWAC(AbstractAlgorithm[FAWACState]):
    """The hyperparameters of FAWAC.

    Args:
        inverse_temperature: α of the weights; 0 clones, more is greedier. 10 is ours.
        flow_steps: M, Euler steps of the policy's next actions in training.
        discount: γ in [0, 1).
        target_aggregation: agg, how heads are combined in targets, advantages and the verifier.
        hidden: sizes of the hidden layers of every network.
        learning_rate: of all three Adams.
        target_rate: τ of the target critic.
    """

    inverse_temperature: float = 10.0
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
        check_not_negative(self, "inverse_temperature")
        check_at_least(self, 1, "flow_steps")
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    @property
    def own_budget(self) -> Budget:
        """As many steps as the critic's targets act in."""
        return Budget(self.flow_steps, 1)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> FAWACState:
        """Fresh networks; the target starts as a copy."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        optimizer = self._optimizer()
        actor, actor_optimizer = flow_policy.init(spec, self.hidden, optimizer, key=actor_key)
        value = ValueNetwork(spec, self.hidden, key=value_key)
        return FAWACState(
            td_critic=td_critic.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key),
            value=value,
            value_optimizer=optimizer.init(eqx.filter(value, eqx.is_array)),
            actor=actor,
            actor_optimizer=actor_optimizer,
        )

    def update(
        self,
        state: FAWACState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[FAWACState, Metrics]:
        """One step of the critic, one of the value, one of the actor, which reads both."""
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
        q = aggregate(
            critic.target_critic.batch(batch.observation, batch.action), self.target_aggregation
        )
        value, value_optimizer, value_metrics = minimise(
            "value",
            lambda value: self.value_loss(value, batch, q),
            optimizer,
            state.value,
            state.value_optimizer,
        )
        advantage = q - value.batch(batch.observation)
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, batch, advantage, key=actor_key),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        return FAWACState(
            td_critic=critic,
            value=value,
            value_optimizer=value_optimizer,
            actor=actor,
            actor_optimizer=actor_optimizer,
        ), {**critic_metrics, **value_metrics, **actor_metrics}

    def policy(self, state: FAWACState) -> FlowPolicy:
        """The flow with the online critic as verifier."""
        return FlowPolicy(
            velocity=state.actor,
            critic=state.td_critic.critic,
            aggregation=self.target_aggregation,
        )

    def value_loss(
        self, value: ValueNetwork, batch: Transition, q: Float[Array, " batch"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_V towards the values `q` of the logged actions, and the mean of V as a metric."""
        v = value.batch(batch.observation)
        return jnp.mean((v - q) ** 2), {"v": jnp.mean(v)}

    def actor_loss(
        self,
        actor: ActionNetwork,
        batch: Transition,
        advantage: Float[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted loss, and as metrics L_FM without weights and the means of A and of w."""
        error = flow_matching_error(actor, batch.observation, batch.action, key=key)
        weights = advantage_weights(advantage, inverse_temperature=self.inverse_temperature)
        return jnp.mean(weights * error), {
            "flow_matching_loss": jnp.mean(error),
            "advantage": jnp.mean(advantage),
            "weight": jnp.mean(weights),
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
