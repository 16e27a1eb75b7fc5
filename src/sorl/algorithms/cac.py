"""CAC: Consistency-AC, an actor-critic whose policy is a consistency model (arXiv 2309.16984).

One network F_θ, scaled to f_θ(s, x, τ) (`sorl.consistency`), answers the action behind a noisy one
at any noise level; from pure noise it takes one step, or a few with noise put back between them.

    behaviour   L_C = mean (f_θ(s, a + τ_{n+1} z, τ_{n+1}) - stopgrad f_θ̄(s, a + τ_n z, τ_n))²,
                n ~ Uniform{1..N-1}, z ~ N(0, I), τ_1 < ... < τ_N
    Q           L_Q = -mean q / stopgrad(mean |q|),   q = mean over heads of Q_φ(s, π_θ(s))
    actor       L = L_C + η · L_Q
    critic      L = mean (Q_φ(s, a) - stopgrad(r + γ · mask · agg Q_φ̄(s', π_θ̄(s'))))²

π(s) is what `sampling_steps` steps make of fresh noise (`sorl.consistency.consistency_path`).

Pseudocode of one update:

    φ ← φ - Adam(∇φ critic loss with a' = π_θ̄(s'));  φ̄ ← φ̄ + τ_target (φ - φ̄)
    θ ← θ - Adam(∇θ actor loss; the gradient of L_Q runs through all sampling steps)
    θ̄ ← θ̄ + τ_target (θ - θ̄)

At test time: π_θ in 1 to N - 1 steps, at noise levels strided evenly through the schedule, and
best-of-N with agg over heads of Q_φ as verifier. By itself 2 steps and no choice.

Departures from the paper: networks and settings are those of the baselines of FQL (arXiv
2502.02538), a plain perceptron without an embedding of τ among them; every n weighs the same in
L_C; N is fixed. Ours: L_Q takes the mean over heads and reads the critic after its step of the same
update; the value of η.
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

from sorl import published, td_critic
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.consistency import NoiseLevels, consistency_error, consistency_path, denoiser
from sorl.critic_policy import AbstractCriticPolicy, check_at_most
from sorl.errors import InputError
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
from sorl.losses import Aggregation, normalised_q_loss
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam, minimise, moving_average
from sorl.td_critic import TDCritic
from sorl.types import Budget, Spec, Transition

HEADS = 2


class CACPolicy(AbstractCriticPolicy):
    """The consistency model with the critic as verifier.

    Attributes:
        actor: F_θ.
        critic: the online critic.
        aggregation: how the verifier combines the critic's heads.
        noise_levels: N, the number of noise levels that were trained.
    """

    actor: ActionNetwork
    critic: Critic
    aggregation: Aggregation = eqx.field(static=True)
    noise_levels: int = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        """Raise `InputError` unless `steps` is from 1 to N - 1."""
        check_at_most(
            steps, self.noise_levels - 1, "it was trained at no more noise levels above the lowest"
        )

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        """[steps, action_size]: fresh noise for every step."""
        return (steps, self.actor.action_size)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, "steps action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        """`steps` steps of the consistency model, see `consistency_path`."""
        levels = NoiseLevels(self.noise_levels)
        return consistency_path(denoiser(self.actor, levels, observation), levels, noise)


class CACState(eqx.Module):
    """Everything that training changes."""

    td_critic: TDCritic
    actor: ActionNetwork
    target_actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class CAC(AbstractAlgorithm[CACState]):
    """The hyperparameters of CAC.

    Args:
        q_loss_coef: η, weight of the Q loss beside that of the behaviour loss, 1. 1 is ours.
        sampling_steps: steps of the policy in training, which the Q loss is backpropagated
            through; at test time any number will do.
        noise_levels: N, how finely the way from noise to action is divided. 40 is ours.
        discount: γ in [0, 1).
        target_aggregation: agg, how heads are combined in targets and in the verifier.
        hidden: sizes of the hidden layers of every network.
        learning_rate: of both Adams.
        target_rate: τ_target of both target networks.
    """

    q_loss_coef: float = 1.0
    sampling_steps: int = 2
    noise_levels: int = 40
    discount: float = 0.99
    target_aggregation: Aggregation = "mean"
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets()
    default_budget: ClassVar[Budget] = Budget(steps=2, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "q_loss_coef")
        check_at_least(self, 1, "sampling_steps")
        if self.noise_levels < self.sampling_steps + 1:
            raise InputError(
                f"CAC noise_levels={self.noise_levels} is too few for sampling_steps="
                f"{self.sampling_steps}: give at least one more than that."
            )
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    @property
    def own_budget(self) -> Budget:
        """As many steps as the losses act in."""
        return Budget(self.sampling_steps, 1)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> CACState:
        """Fresh networks; targets start as copies."""
        critic_key, actor_key = jax.random.split(key)
        actor = ActionNetwork(spec, self.hidden, scalars=1, key=actor_key)
        optimizer = self._optimizer()
        return CACState(
            td_critic=td_critic.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key),
            actor=actor,
            target_actor=actor,
            actor_optimizer=optimizer.init(eqx.filter(actor, eqx.is_array)),
        )

    def update(
        self,
        state: CACState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[CACState, Metrics]:
        """One step of the critic, one of the actor, which reads it, one of both averages."""
        next_key, behaviour_key, q_key = jax.random.split(key, 3)
        optimizer = self._optimizer()
        critic, critic_metrics = td_critic.update(
            state.td_critic,
            batch,
            self.actions(state.target_actor, batch.next_observation, key=next_key),
            optimizer,
            discount=self.discount,
            aggregation=self.target_aggregation,
            target_rate=self.target_rate,
        )

        def actor_loss(actor: ActionNetwork) -> tuple[Float[Array, ""], Metrics]:
            behaviour = self.behaviour_loss(actor, state.target_actor, batch, key=behaviour_key)
            q_loss = self.q_loss(actor, critic.critic, batch.observation, key=q_key)
            return behaviour + self.q_loss_coef * q_loss, {
                "consistency_loss": behaviour,
                "q_loss": q_loss,
            }

        actor, actor_optimizer, actor_metrics = minimise(
            "actor", actor_loss, optimizer, state.actor, state.actor_optimizer
        )
        return CACState(
            td_critic=critic,
            actor=actor,
            target_actor=moving_average(state.target_actor, actor, rate=self.target_rate),
            actor_optimizer=actor_optimizer,
        ), {**critic_metrics, **actor_metrics}

    def policy(self, state: CACState) -> CACPolicy:
        """The online actor with the online critic as verifier."""
        return CACPolicy(
            actor=state.actor,
            critic=state.td_critic.critic,
            aggregation=self.target_aggregation,
            noise_levels=self.noise_levels,
        )

    def behaviour_loss(
        self,
        actor: ActionNetwork,
        target_actor: ActionNetwork,
        batch: Transition,
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        """L_C."""
        error = consistency_error(
            actor, target_actor, self._levels(), batch.observation, batch.action, key=key
        )
        return jnp.mean(error)

    def q_loss(
        self,
        actor: ActionNetwork,
        critic: Critic,
        observation: Float[Array, "batch observation_size"],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        """L_Q with backpropagation through all sampling steps; a clipped entry passes none."""
        values = critic.batch(observation, self.actions(actor, observation, key=key))
        return normalised_q_loss(jnp.mean(values, axis=-1))

    def actions(
        self,
        actor: ActionNetwork,
        observation: Float[Array, "batch observation_size"],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "batch action_size"]:
        """One action π(s) a row."""
        levels = self._levels()
        rows = observation.shape[0]
        noise = jax.random.normal(key, (rows, self.sampling_steps, actor.action_size))
        denoise = denoiser(actor, levels, observation)
        return consistency_path(denoise, levels, jnp.moveaxis(noise, 1, 0))

    def _levels(self) -> NoiseLevels:
        return NoiseLevels(self.noise_levels)

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
