"""FQL: flow Q-learning, a one-step policy distilled from a cloned flow and improved by Q.

Two policies read the noise z ~ N(0, I). The behaviour flow is the teacher: its action T_ψ(s, z) is
the end of M = 10 Euler steps of v_ψ(s, x, t) from z, clipped to [-1, 1]. The actor μ_θ(s, z)
answers in one pass; it acts with π(s) = clip(μ_θ(s, z), -1, 1).

    behaviour          L_FM = mean (v_ψ(s, x_t, t) - (x1 - x0))²,  x_t = (1 - t) x0 + t x1,
                       x1 = the logged action, x0 ~ N(0, I), t ~ U[0, 1)
    distillation       L_D = mean (μ_θ(s, z) - stopgrad(T_ψ(s, z)))²      the same z for both
    Q                  L_Q = -mean q, divided by stopgrad(mean |q|) with `normalise_q`;
                       q = mean over heads of Q_φ(s, π(s))
    actor              L = α · L_D + L_Q
    critic             L = mean (Q_φ(s, a) - stopgrad(r + γ · mask · agg Q_φ̄(s', π(s'))))²

Pseudocode of one update (`batch` of B rows):

    φ ← φ - Adam(∇φ critic loss);  φ̄ ← φ̄ + τ (φ - φ̄)
    ψ ← ψ - Adam(∇ψ L_FM)
    θ ← θ - Adam(∇θ actor loss)

The actor's loss reads φ and ψ after their steps of the same update. No gradient runs through the
teacher's steps. At test time: one pass, and best-of-N with agg Q_φ(s, ·) as verifier.

Paper: Park, Li and Levine 2025, arXiv 2502.02538.

Departures from it: the squares are means over the entries of an action, not their sum, as in every
flow-matching loss here. Ours: the critic and the teacher after their steps; the mean over heads in
L_Q even where targets take the minimum; α = 10 where no preset is published; LayerNorm's epsilon is
1e-6.
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
from sorl.critic_policy import AbstractCriticPolicy, check_one_pass
from sorl.flow_policy import flow_actions
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


class FQLPolicy(AbstractCriticPolicy):
    """The one-step policy with the critic as verifier.

    Attributes:
        actor: μ(s, z), not clipped yet.
        critic: the online critic.
        aggregation: how the verifier combines the critic's heads.
    """

    actor: ActionNetwork
    critic: Critic
    aggregation: Aggregation = eqx.field(static=True)

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
        """One pass from the noise, clipped; `steps` plays no part."""
        return jnp.clip(self.actor(observation, noise), -1, 1)


class FQLState(eqx.Module):
    """Everything that training changes; `behaviour` is the flow that teaches."""

    td_critic: TDCritic
    behaviour: ActionNetwork
    behaviour_optimizer: optax.OptState
    actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class FQL(AbstractAlgorithm[FQLState]):
    """The hyperparameters of FQL; defaults are the paper's.

    Args:
        distillation_coef: α, weight of L_D beside the Q loss.
        normalise_q: whether the Q loss is divided by the mean |q|; the published values of α
            belong to runs without.
        flow_steps: M, Euler steps of the teacher.
        discount: γ in [0, 1).
        target_aggregation: agg, how heads are combined in targets and in the verifier.
        hidden: sizes of the hidden layers of every network.
        actor_hidden: sizes for actor and behaviour flow alone; empty means as `hidden`.
        learning_rate: of all three Adams.
        target_rate: τ of the target critic.
    """

    distillation_coef: float = 10.0
    normalise_q: bool = False
    flow_steps: int = 10
    discount: float = 0.99
    target_aggregation: Aggregation = "mean"
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    actor_hidden: tuple[int, ...] = ()
    learning_rate: float = 3e-4
    target_rate: float = 0.005

    # α of the paper's appendix.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        {
            "antmaze-large-navigate": {"distillation_coef": 10.0},
            "antmaze-giant-navigate": {"distillation_coef": 10.0},
            "humanoidmaze-medium-navigate": {"distillation_coef": 30.0},
            "humanoidmaze-large-navigate": {"distillation_coef": 30.0},
            "antsoccer-arena-navigate": {"distillation_coef": 10.0},
            "cube-single-play": {"distillation_coef": 300.0},
            "cube-double-play": {"distillation_coef": 300.0},
            "scene-play": {"distillation_coef": 300.0},
        }
    )
    default_budget: ClassVar[Budget] = Budget(steps=1, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "distillation_coef")
        check_at_least(self, 1, "flow_steps")
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_layers(self, "actor_hidden", may_be_empty=True)
        check_positive(self, "learning_rate")
        check_rate(self)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> FQLState:
        """Fresh networks; the target starts as a copy."""
        actor_key, behaviour_key, critic_key = jax.random.split(key, 3)
        optimizer = self._optimizer()
        hidden = self.actor_hidden or self.hidden
        behaviour, behaviour_optimizer = flow_policy.init(
            spec, hidden, optimizer, key=behaviour_key
        )
        actor = ActionNetwork(spec, hidden, scalars=0, key=actor_key)
        return FQLState(
            td_critic=td_critic.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key),
            behaviour=behaviour,
            behaviour_optimizer=behaviour_optimizer,
            actor=actor,
            actor_optimizer=optimizer.init(eqx.filter(actor, eqx.is_array)),
        )

    def update(
        self,
        state: FQLState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[FQLState, Metrics]:
        """One step of the critic, one of the behaviour, one of the actor, which reads both."""
        critic_key, behaviour_key, actor_key = jax.random.split(key, 3)
        optimizer = self._optimizer()

        noise = jax.random.normal(critic_key, batch.action.shape)
        critic, critic_metrics = td_critic.update(
            state.td_critic,
            batch,
            jnp.clip(state.actor.batch(batch.next_observation, noise), -1, 1),
            optimizer,
            discount=self.discount,
            aggregation=self.target_aggregation,
            target_rate=self.target_rate,
        )
        behaviour, behaviour_optimizer, behaviour_metrics = minimise(
            "behaviour",
            lambda behaviour: self.behaviour_loss(behaviour, batch, key=behaviour_key),
            optimizer,
            state.behaviour,
            state.behaviour_optimizer,
        )
        noise = jax.random.normal(actor_key, batch.action.shape)
        taught = flow_actions(behaviour, batch.observation, noise, steps=self.flow_steps)
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, critic.critic, batch, noise, taught),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        return FQLState(
            td_critic=critic,
            behaviour=behaviour,
            behaviour_optimizer=behaviour_optimizer,
            actor=actor,
            actor_optimizer=actor_optimizer,
        ), {**critic_metrics, **behaviour_metrics, **actor_metrics}

    def policy(self, state: FQLState) -> FQLPolicy:
        """The one-step policy with the online critic as verifier."""
        return FQLPolicy(
            actor=state.actor,
            critic=state.td_critic.critic,
            aggregation=self.target_aggregation,
        )

    def behaviour_loss(
        self, behaviour: ActionNetwork, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_FM; no further metrics."""
        error = flow_matching_error(behaviour, batch.observation, batch.action, key=key)
        return jnp.mean(error), {}

    def actor_loss(
        self,
        actor: ActionNetwork,
        critic: Critic,
        batch: Transition,
        noise: Float[Array, "batch action_size"],
        taught: Float[Array, "batch action_size"],
    ) -> tuple[Float[Array, ""], Metrics]:
        """α · L_D + L_Q with the teacher's actions `taught`, and as metrics L_D and L_Q."""
        action = actor.batch(batch.observation, noise)
        distillation_loss = jnp.mean((action - taught) ** 2)
        q = aggregate(critic.batch(batch.observation, jnp.clip(action, -1, 1)), "mean")
        q_loss = normalised_q_loss(q) if self.normalise_q else -jnp.mean(q)
        return self.distillation_coef * distillation_loss + q_loss, {
            "distillation_loss": distillation_loss,
            "q_loss": q_loss,
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
