"""ReBRAC: TD3 held near the data in the actor and in the critic's targets (arXiv 2305.09836).

    policy      π_θ(s) = tanh of a network
    critic      L = mean (Q_φ(s, a) - stopgrad(y))² over rows and heads,
                y = r + γ · mask · (min over heads of Q_φ̄(s', ã') - α2 · m' · ‖ã' - a'‖²),
                ã' = clip(π_θ̄(s') + clip(σ ε, -c, c), -1, 1),   ε ~ N(0, I)
    actor       L = -mean q / stopgrad(mean |q|) + α1 · mean ‖π_θ(s) - a‖²,
                q = min over heads of Q_φ(s, π_θ(s))

a' is the next action of the log, and m' its `next_action_mask`: 0 on the last step of an episode,
where the log has no next action, so the target there has no penalty. ‖·‖² is the sum of squares
over the entries of an action, not their mean: the same α weighs more in a larger action space.

Pseudocode of one update:

    φ ← φ - Adam(∇φ critic loss)
    on every second update, the first among them:
        θ ← θ - Adam(∇θ actor loss)
        θ̄ ← θ̄ + τ (θ - θ̄);  φ̄ ← φ̄ + τ (φ - φ̄)

The actor's metrics of an update on which it does not move are those of the last one on which it
did, so a mean over updates is a mean over the actor's steps.

At test time: π_θ(s); the verifier of best-of-N is min over heads of Q_φ.

Departures from the paper: networks, learning rate and batch are those of the baselines of FQL
(arXiv 2502.02538). Ours: `sampling_std`, the spread of the actions at test time: at 0, as
published, best-of-N has nothing to choose from.
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

from sorl import gaussian, published
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.gaussian import DirectActor, ScoredGaussianPolicy, squared_distance
from sorl.hyperparameters import (
    check_at_least,
    check_discount,
    check_layers,
    check_not_negative,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.losses import aggregate, critic_loss, normalised_q_loss, td_target
from sorl.nn import Critic
from sorl.optim import adam, minimise, moving_average
from sorl.types import Budget, Spec, Transition

HEADS = 2

ACTOR_METRICS = ("loss", "q", "squared_distance", "gradient_norm")


class ReBRACState(eqx.Module):
    """Everything that training changes; `actor_metrics` are those of the actor's last step."""

    actor: DirectActor
    target_actor: DirectActor
    critic: Critic
    target_critic: Critic
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    actor_metrics: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class ReBRAC(AbstractAlgorithm[ReBRACState]):
    """The hyperparameters of ReBRAC.

    Args:
        actor_penalty: α1 of the actor's distance to the logged action; 0.01 is ours where no
            preset is published.
        critic_penalty: α2 of the target action's distance to the logged next action; 0.01 is ours
            where no preset is published.
        discount: γ in [0, 1).
        target_noise: σ, standard deviation of the noise on the target policy's actions.
        target_noise_clip: c, largest magnitude of that noise.
        policy_delay: updates of the critic for each of the actor and of both targets.
        hidden: sizes of the hidden layers of every network.
        learning_rate: of both Adams.
        target_rate: τ of both target networks.
        sampling_std: standard deviation of actions at test time; 0 acts with the policy itself.
    """

    actor_penalty: float = 0.01
    critic_penalty: float = 0.01
    discount: float = 0.99
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    policy_delay: int = 2
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    sampling_std: float = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        {
            # As in the runs published with FQL.
            "humanoidmaze-medium-navigate": {"actor_penalty": 0.01, "critic_penalty": 0.01},
            # Reported by others, not by the authors of ReBRAC or FQL.
            "antmaze-giant-navigate": {"actor_penalty": 0.003, "critic_penalty": 0.01},
        },
        without=("target_aggregation",),
    )
    default_budget: ClassVar[Budget] = Budget(steps=1, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "actor_penalty", "critic_penalty", "sampling_std")
        check_not_negative(self, "target_noise", "target_noise_clip")
        check_discount(self)
        check_at_least(self, 1, "policy_delay")
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> ReBRACState:
        """Fresh networks; targets start as copies."""
        actor_key, critic_key = jax.random.split(key)
        optimizer = self._optimizer()
        actor, actor_optimizer = gaussian.init(
            spec, self.hidden, optimizer, squash=True, key=actor_key
        )
        critic = Critic(spec, 0, self.hidden, heads=HEADS, key=critic_key)
        return ReBRACState(
            actor=actor,
            target_actor=actor,
            critic=critic,
            target_critic=critic,
            actor_optimizer=actor_optimizer,
            critic_optimizer=optimizer.init(eqx.filter(critic, eqx.is_array)),
            actor_metrics={f"actor/{name}": jnp.zeros(()) for name in ACTOR_METRICS},
        )

    def update(
        self,
        state: ReBRACState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[ReBRACState, Metrics]:
        """One step of the critic; every `policy_delay` updates one of actor and targets."""
        target = self.critic_target(state, batch, key=key)
        critic, critic_optimizer, critic_metrics = minimise(
            "critic",
            lambda critic: critic_loss(critic, batch.observation, batch.action, target),
            self._optimizer(),
            state.critic,
            state.critic_optimizer,
        )
        state = dataclasses.replace(state, critic=critic, critic_optimizer=critic_optimizer)
        # Update 0 moves the actor, so the metrics that `init` made up are never reported.
        state = jax.lax.cond(
            update_index % self.policy_delay == 0,
            lambda state: self.delayed_update(state, batch),
            lambda state: state,
            state,
        )
        return state, {**critic_metrics, **state.actor_metrics}

    def delayed_update(self, state: ReBRACState, batch: Transition) -> ReBRACState:
        """One step of the actor, which reads the critic after its step, and of both averages."""
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, state.critic, batch),
            self._optimizer(),
            state.actor,
            state.actor_optimizer,
        )
        return ReBRACState(
            actor=actor,
            target_actor=moving_average(state.target_actor, actor, rate=self.target_rate),
            critic=state.critic,
            target_critic=moving_average(state.target_critic, state.critic, rate=self.target_rate),
            actor_optimizer=actor_optimizer,
            critic_optimizer=state.critic_optimizer,
            actor_metrics=actor_metrics,
        )

    def policy(self, state: ReBRACState) -> ScoredGaussianPolicy:
        """The online actor with the online critic as verifier."""
        return ScoredGaussianPolicy(
            actor=state.actor,
            critic=state.critic,
            aggregation="min",
            sampling_std=self.sampling_std,
        )

    def critic_target(
        self, state: ReBRACState, batch: Transition, *, key: PRNGKeyArray
    ) -> Float[Array, " batch"]:
        """y, from both target networks."""
        noise = self.target_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -self.target_noise_clip, self.target_noise_clip)
        actions = jnp.clip(state.target_actor.batch(batch.next_observation) + noise, -1, 1)
        values = aggregate(state.target_critic.batch(batch.next_observation, actions), "min")
        penalty = batch.next_action_mask * squared_distance(actions, batch.next_action)
        return td_target(
            batch.reward,
            batch.mask,
            values - self.critic_penalty * penalty,
            discount=self.discount,
        )

    def actor_loss(
        self, actor: DirectActor, critic: Critic, batch: Transition
    ) -> tuple[Float[Array, ""], Metrics]:
        """The actor's loss, and as metrics the means of q and of ‖π(s) - a‖² before α1."""
        actions = actor.batch(batch.observation)
        q = aggregate(critic.batch(batch.observation, actions), "min")
        distance = jnp.mean(squared_distance(actions, batch.action))
        return normalised_q_loss(q) + self.actor_penalty * distance, {
            "q": jnp.mean(q),
            "squared_distance": distance,
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
