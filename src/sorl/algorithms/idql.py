"""IDQL: implicit Q-learning, and the best of many draws of a diffusion model (arXiv 2304.10573).

The critic never asks for an action outside the data (`sorl.implicit_q`); the policy clones the
behaviour, all modes of it, and improves only by choosing among its own draws:

    value       L_V = mean L_τ(min over heads of Q_φ̄(s, a) - V_ψ(s)),   L_τ(u) = |τ - 1(u < 0)| u²
    critic      L_Q = mean (Q_φ(s, a) - (r + γ · mask · V_ψ(s')))²
    behaviour   L_μ = mean (ε_θ(s, x_t, t) - ε)²,   x_t = α(t) a + σ(t) ε,   ε ~ N(0, I),
                t ~ Uniform{1/T, 2/T, ..., 1},   α, σ variance-preserving with β0 = 0.1, β1 = 10

Pseudocode of one update:

    ψ ← ψ - Adam(∇ψ L_V)
    φ ← φ - Adam(∇φ L_Q);  φ̄ ← φ̄ + τ_target (φ - φ̄)
    θ ← θ - Adam(∇θ L_μ)

At test time: N actions by ancestral sampling (`sorl.diffusion.ancestral_path`) in any number of
steps up to T, at times strided evenly with t = 1 among them; then the one with the highest min over
heads of Q_φ. By itself 10 steps and N = 32. Few steps blur the modes; one answers about their mean.

Departures from the paper: of its ways to choose, the arg max of Q alone, and T = 10, as in the
runs published with FQL (arXiv 2502.02538), whose networks and settings these are: a plain
perceptron reads the raw t, where the paper has residual blocks with dropout and an embedding of t;
the learning rate is constant. Ours: a sampling step clips the action it foresees to [-1, 1].
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

from sorl import implicit_q, published
from sorl.algorithm import AbstractAlgorithm, Metrics
from sorl.critic_policy import AbstractCriticPolicy, check_at_most
from sorl.diffusion import VariancePreserving, ancestral_path, noise_prediction_error
from sorl.hyperparameters import (
    check_at_least,
    check_between_0_and_1,
    check_discount,
    check_layers,
    check_positive,
    check_rate,
    make_plain,
)
from sorl.implicit_q import ImplicitQ
from sorl.losses import Aggregation
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam, minimise
from sorl.types import Budget, Spec, Transition

HEADS = 2

SCHEDULE = VariancePreserving(lowest_rate=0.1, highest_rate=10.0)


class IDQLPolicy(AbstractCriticPolicy):
    """The behaviour's diffusion model with the critic as verifier.

    Attributes:
        noise_prediction: ε_θ(s, x, t).
        critic: the online critic.
        aggregation: how the verifier combines the critic's heads.
        diffusion_steps: T, the number of times that were trained.
    """

    noise_prediction: ActionNetwork
    critic: Critic
    aggregation: Aggregation = eqx.field(static=True)
    diffusion_steps: int = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        """Raise `InputError` unless `steps` is from 1 to T."""
        check_at_most(steps, self.diffusion_steps, "its diffusion was trained at no more times")

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        """[steps, action_size]: where the path begins, and what all steps but the last add."""
        return (steps, self.noise_prediction.action_size)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, "steps action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        """`steps` steps of ancestral sampling, evenly strided over the T."""
        return ancestral_path(
            self.noise_prediction.bind(observation),
            SCHEDULE,
            noise,
            trained_steps=self.diffusion_steps,
        )


class IDQLState(eqx.Module):
    """Everything that training changes; the actor is the diffusion model."""

    implicit_q: ImplicitQ
    actor: ActionNetwork
    actor_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class IDQL(AbstractAlgorithm[IDQLState]):
    """The hyperparameters of IDQL.

    Args:
        diffusion_steps: T, the number of noise levels, and the most sampling steps.
        expectile: τ of the value's loss in (0, 1); near 1 it approaches the best action's value.
        discount: γ in [0, 1).
        hidden: sizes of the hidden layers of every network.
        learning_rate: of every Adam.
        target_rate: τ_target of the target critic.
    """

    diffusion_steps: int = 10
    expectile: float = 0.9
    discount: float = 0.99
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    learning_rate: float = 3e-4
    target_rate: float = 0.005

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        without=("target_aggregation",)
    )
    default_budget: ClassVar[Budget] = Budget(steps=10, best_of=32)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_at_least(self, 1, "diffusion_steps")
        check_between_0_and_1(self, "expectile")
        check_discount(self)
        check_layers(self, "hidden")
        check_positive(self, "learning_rate")
        check_rate(self)

    @property
    def own_budget(self) -> Budget:
        """All steps of the diffusion, and the published number of candidates."""
        return Budget(self.diffusion_steps, self.default_budget.best_of)

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> IDQLState:
        """Fresh networks; the target starts as a copy."""
        critic_key, actor_key = jax.random.split(key)
        actor = ActionNetwork(spec, self.hidden, scalars=1, key=actor_key)
        optimizer = self._optimizer()
        return IDQLState(
            implicit_q=implicit_q.init(spec, self.hidden, optimizer, heads=HEADS, key=critic_key),
            actor=actor,
            actor_optimizer=optimizer.init(eqx.filter(actor, eqx.is_array)),
        )

    def update(
        self,
        state: IDQLState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[IDQLState, Metrics]:
        """One step of value and critic, one of the actor; neither reads the other."""
        optimizer = self._optimizer()
        critic, critic_metrics = implicit_q.update(
            state.implicit_q,
            batch,
            optimizer,
            discount=self.discount,
            expectile=self.expectile,
            target_rate=self.target_rate,
        )
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: (self.behaviour_loss(actor, batch, key=key), {}),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        new_state = IDQLState(implicit_q=critic, actor=actor, actor_optimizer=actor_optimizer)
        return new_state, {**critic_metrics, **actor_metrics}

    def policy(self, state: IDQLState) -> IDQLPolicy:
        """The diffusion model with the online critic as verifier."""
        return IDQLPolicy(
            noise_prediction=state.actor,
            critic=state.implicit_q.critic,
            aggregation="min",
            diffusion_steps=self.diffusion_steps,
        )

    def behaviour_loss(
        self, actor: ActionNetwork, batch: Transition, *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """L_μ."""
        time_key, noise_key = jax.random.split(key)
        rows = batch.action.shape[:1]
        time = jax.random.randint(time_key, rows, 1, self.diffusion_steps + 1)
        return jnp.mean(
            noise_prediction_error(
                actor,
                SCHEDULE,
                batch.observation,
                batch.action,
                time / self.diffusion_steps,
                key=noise_key,
            )
        )

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)
