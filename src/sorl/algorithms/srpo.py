"""SRPO: a one-pass policy held near the data by a diffusion model's score (arXiv 2310.07297).

The critic never asks for an action outside the data (`sorl.implicit_q`). A diffusion model learns
the behaviour but never draws from it: its noise prediction says in which direction data lie.

    value       L_V = mean L_τ(min over heads of Q_φ̄(s, a) - V_ψ(s)),   L_τ(u) = |τ - 1(u < 0)| u²
    critic      L_Q = mean (Q_φ(s, a) - (r + γ · mask · V_ψ(s')))²
    behaviour   L_μ = mean (ε_ω(s, x_t, t) - ε)²,   x_t = α(t) a + σ(t) ε,   t ~ U[0, 1),
                α, σ variance-preserving with β0 = 0.1, β1 = 20
    policy      π_θ(s) = tanh of a network, ascending along

                ∇θ J = mean [∇a q(s, a) - (1/β) · w(t) · (ε_ω(s, a_t, t) - ε)]ᵀ ∇θ π_θ(s)

                at a = π_θ(s), a_t = α(t) a + σ(t) ε, t ~ U(0.02, 0.98), ε ~ N(0, I),
                q = mean over heads of Q_φ(s, a) / stopgrad(mean |mean over heads of Q_φ|)

The second term is the gradient of a Kullback-Leibler divergence from policy to behaviour, both
diffused to time t and averaged over t with weights w(t) σ(t)/α(t); ε is subtracted since it lowers
the variance and changes nothing on average. The paper's weight is w = σ² (`time_weight` variance);
with w = α/σ (divergence) every t weighs the same.

This direction of the divergence seeks modes, but modes that noise has merged are one mode. Weights
of σ² look at large t above all, where all of [-1, 1] has merged: with a small β the policy is then
near the mean of the behaviour, even between modes. With α/σ small t count, and it is near a mode.
With a large β it is the arg max of Q either way.

Pseudocode of one update:

    ψ ← ψ - Adam(∇ψ L_V)
    φ ← φ - Adam(∇φ L_Q);  φ̄ ← φ̄ + τ_target (φ - φ̄)
    ω ← ω - Adam(∇ω L_μ)
    θ ← θ + Adam(∇θ J), reading the networks that have just moved and moving none of them

At test time: π_θ(s); the verifier of best-of-N is min over heads of Q_φ.

Departures from the paper: one stage of training, in which the policy learns beside the behaviour
model and the critic, where the paper trains these first and freezes them. Networks and settings
are those of the baselines of FQL (arXiv 2502.02538): a plain perceptron reads the raw t, where the
paper has residual blocks and an embedding of t; learning rates are constant. Ours: q is divided by
its mean magnitude, so that one β serves rewards of any scale (`normalise_q`; without it, q is as
in the paper), and reads the mean over heads; `sampling_std`, the spread of the actions at test
time: at 0, as published, best-of-N has nothing to choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl import gaussian, implicit_q, published
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.diffusion import VariancePreserving, noise_prediction_error
from sorl.gaussian import DirectActor, ScoredGaussianPolicy
from sorl.hyperparameters import (
    check_between_0_and_1,
    check_choices,
    check_discount,
    check_layers,
    check_not_negative,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.implicit_q import ImplicitQ
from sorl.losses import aggregate, normalised_q_loss
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam, minimise
from sorl.types import Budget, Spec, Transition

HEADS = 2

SCHEDULE = VariancePreserving(lowest_rate=0.1, highest_rate=20.0)

TimeWeight = Literal["variance", "divergence"]

# The paper's: near t = 0 the score of narrow data has no bound, near t = 1 it says nothing.
FIRST_TIME, LAST_TIME = 0.02, 0.98


class SRPOState(eqx.Module):
    """Everything that training changes; `behaviour` is the diffusion model."""

    implicit_q: ImplicitQ
    behaviour: ActionNetwork
    actor: DirectActor
    behaviour_optimizer: optax.OptState
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class SRPO(AbstractAlgorithm[SRPOState]):
    """The hyperparameters of SRPO.

    Args:
        temperature: β; small keeps to the behaviour, large follows Q. 1 is ours.
        time_weight: w(t), "variance" for σ(t)² or "divergence" for α(t)/σ(t).
        normalise_q: whether q is divided by its mean magnitude.
        expectile: τ of the value's loss in (0, 1); near 1 it approaches the best action's value.
        discount: γ in [0, 1).
        hidden: sizes of the hidden layers of every network.
        learning_rate: of every Adam.
        target_rate: τ_target of the target critic.
        sampling_std: standard deviation of actions at test time; 0 acts with π itself.
    """

    temperature: float = 1.0
    time_weight: TimeWeight = "variance"
    normalise_q: bool = True
    expectile: float = 0.9
    discount: float = 0.99
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    sampling_std: float = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        without=("target_aggregation",)
    )
    default_budget: ClassVar[Budget] = Budget(steps=1, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_not_negative(self, "sampling_std")
        check_between_0_and_1(self, "expectile")
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "temperature", "learning_rate")
        check_rate(self)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> SRPOState:
        """Fresh networks; the target starts as a copy."""
        critic_key, behaviour_key, actor_key = jax.random.split(key, 3)
        behaviour = ActionNetwork(spec, self.hidden, scalars=1, key=behaviour_key)
        optimizer = self._optimizer()
        actor, actor_optimizer = gaussian.init(
            spec, self.hidden, optimizer, squash=True, key=actor_key
        )
        return SRPOState(
            implicit_q=implicit_q.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key),
            behaviour=behaviour,
            actor=actor,
            behaviour_optimizer=optimizer.init(eqx.filter(behaviour, eqx.is_array)),
            actor_optimizer=actor_optimizer,
        )

    def update(
        self,
        state: SRPOState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[SRPOState, Metrics]:
        """One step each of value, critic, behaviour model and policy, which reads the others."""
        behaviour_key, actor_key = jax.random.split(key)
        optimizer = self._optimizer()
        critic, critic_metrics = implicit_q.update(
            state.implicit_q,
            batch,
            optimizer,
            discount=self.discount,
            expectile=self.expectile,
            target_rate=self.target_rate,
        )
        behaviour, behaviour_optimizer, behaviour_metrics = minimise(
            "behaviour",
            lambda behaviour: (self.behaviour_loss(behaviour, batch, key=behaviour_key), {}),
            optimizer,
            state.behaviour,
            state.behaviour_optimizer,
        )
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: self.actor_loss(actor, critic.critic, behaviour, batch, key=actor_key),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        return SRPOState(
            implicit_q=critic,
            behaviour=behaviour,
            actor=actor,
            behaviour_optimizer=behaviour_optimizer,
            actor_optimizer=actor_optimizer,
        ), {**critic_metrics, **behaviour_metrics, **actor_metrics}

    def policy(self, state: SRPOState) -> ScoredGaussianPolicy:
        """The actor with the online critic as verifier."""
        return ScoredGaussianPolicy(
            actor=state.actor,
            critic=state.implicit_q.critic,
            aggregation="min",
            sampling_std=self.sampling_std,
        )

    def behaviour_loss(
        self, behaviour: ActionNetwork, batch: Transition, *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """L_μ."""
        time_key, noise_key = jax.random.split(key)
        time = jax.random.uniform(time_key, batch.action.shape[:1])
        error = noise_prediction_error(
            behaviour, SCHEDULE, batch.observation, batch.action, time, key=noise_key
        )
        return jnp.mean(error)

    def actor_loss(
        self,
        actor: DirectActor,
        critic: Critic,
        behaviour: ActionNetwork,
        batch: Transition,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Metrics]:
        """A loss whose gradient is -∇θ J, and as metrics q's part and what is off in the noise.

        The loss itself is no measure of progress: of the divergence only the gradient is known.
        """
        action = actor.batch(batch.observation)
        q = aggregate(critic.batch(batch.observation, action), "mean")
        q_loss = normalised_q_loss(q) if self.normalise_q else -jnp.mean(q)
        difference = self.score_difference(behaviour, batch.observation, action, key=key)
        divergence = jnp.mean(jnp.sum(difference * action, axis=-1))
        return q_loss + divergence / self.temperature, {
            "q_loss": q_loss,
            "score_difference": jnp.mean(jnp.linalg.norm(difference, axis=-1)),
        }

    def score_difference(
        self,
        behaviour: ActionNetwork,
        observation: Float[Array, "rows observation_size"],
        action: Float[Array, "rows action_size"],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "rows action_size"]:
        """stopgrad(w(t) (ε_ω(s, a_t, t) - ε)), with one t and one ε a row.

        On average it points from where the behaviour has its actions to `action`.
        """
        time_key, noise_key = jax.random.split(key)
        rows = action.shape[:1]
        time = jax.random.uniform(time_key, rows, minval=FIRST_TIME, maxval=LAST_TIME)
        noise = jax.random.normal(noise_key, action.shape)
        x = SCHEDULE.noised(action, noise, time)
        difference = jax.vmap(behaviour)(observation, x, time) - noise
        spread = SCHEDULE.noise(time)
        weight = spread**2 if self.time_weight == "variance" else SCHEDULE.signal(time) / spread
        # J is known by its gradient alone, which ends at a: none runs through the network.
        return jax.lax.stop_gradient(weight[:, None] * difference)

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
