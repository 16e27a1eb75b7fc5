"""SAC: online actor-critic that maximises reward and entropy, with an automatic temperature.

    policy       u = μ_θ(s) + σ_θ(s) ε,   a = tanh u,   ε ~ N(0, I),   log σ clipped to [-20, 2]
                 log π(a|s) = Σ_i log N(u_i; μ_i, σ_i) - log(1 - tanh² u_i)
    Q            L_Q = mean (Q_φ(s, a) - y)² over rows and heads
                 y = stopgrad(r + γ · mask · (min over heads of Q_φ̄(s', a') - α log π(a'|s')))
    actor        L_π = mean (α log π(a|s) - min over heads of Q_φ(s, a)),   a ~ π(s)
    temperature  L_α = mean α · stopgrad(-log π(a|s) - H̄),   H̄ = -(entries of an action)
    φ̄ ← φ̄ + τ (φ - φ̄)

    for every step of the environment:
        a ~ π(s); store (s, a, r, mask, s')
        draw a batch of what is stored
        y from a' ~ π(s')           step of Q
        a ~ π(s)                    step of the actor
        log π(a|s) of the same a    step of the temperature
        φ̄ moves towards φ

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905), algorithm
1 with two heads. Departures: the networks are this library's, so GELU for ReLU and a LayerNorm in
the critic, which keeps Q of few data from running away; the bounds of log σ are customary, the
paper names none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.algorithm import Metrics
from sorl.losses import aggregate, critic_loss, td_target
from sorl.nn import MLP, Critic
from sorl.optim import adam, minimise, moving_average
from sorl.types import Spec

LOG_STD_RANGE = (-20.0, 2.0)


class Experience(NamedTuple):
    """Steps of the environment; a batch has a leading axis.

    Attributes:
        observation: s.
        action: a in [-1, 1].
        reward: r.
        mask: 0 where s' ended the episode for good, so nothing is bootstrapped; 1 elsewhere, also
            where only the time was up.
        next_observation: s'.
    """

    observation: Float[Array, "*batch observation_size"]
    action: Float[Array, "*batch action_size"]
    reward: Float[Array, "*batch"]
    mask: Float[Array, "*batch"]
    next_observation: Float[Array, "*batch observation_size"]


class SquashedGaussian(eqx.Module):
    """π(a|s): tanh of a Gaussian whose mean and deviations are read from the observation.

    Args:
        spec: sizes of observations and actions.
        hidden: sizes of the hidden layers.
    """

    mlp: MLP

    def __init__(self, spec: Spec, hidden: tuple[int, ...], *, key: PRNGKeyArray):
        outputs = 2 * spec.action_size
        self.mlp = MLP(spec.observation_size, hidden, outputs, layer_norm=False, key=key)

    def __call__(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, " action_size"],
    ) -> tuple[Float[Array, " action_size"], Float[Array, ""]]:
        """The action in (-1, 1) that `noise` ~ N(0, I) makes, and its log density."""
        mean, log_std = jnp.split(self.mlp(observation), 2)
        log_std = jnp.clip(log_std, *LOG_STD_RANGE)
        u = mean + jnp.exp(log_std) * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh² u), exact where tanh u is 1 to rounding.
        squash = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
        return jnp.tanh(u), jnp.sum(gaussian - squash)

    def batch(
        self,
        observation: Float[Array, "rows observation_size"],
        noise: Float[Array, "rows action_size"],
    ) -> tuple[Float[Array, "rows action_size"], Float[Array, " rows"]]:
        """The same for many rows."""
        return jax.vmap(self)(observation, noise)


class Temperature(eqx.Module):
    """α = exp(log α), the price of entropy in units of reward."""

    log: Float[Array, ""]

    def __call__(self) -> Float[Array, ""]:
        """α."""
        return jnp.exp(self.log)


class SACState(eqx.Module):
    """Every array that training changes."""

    actor: SquashedGaussian
    critic: Critic
    target_critic: Critic
    temperature: Temperature
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    temperature_optimizer: optax.OptState


@dataclass(frozen=True)
class SAC:
    """The recipe; hashable, so that it can be static in a compiled program.

    Args:
        hidden: sizes of the hidden layers of actor and critic.
        learning_rate: step size of Adam for actor, critic and temperature.
        batch_size: rows of a batch.
        discount: γ.
        target_rate: τ.
        heads: Q networks.
        initial_temperature: α at the start; ours: of the size of one step's reward, because log α
            moves by no more than the learning rate in a step.
        warm_up: steps of uniformly random actions, without updates, at the start; ours.
        replay: steps that the replay buffer remembers, the newest ones.
    """

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 1e-4
    batch_size: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    heads: int = 2
    initial_temperature: float = 0.1
    warm_up: int = 5_000
    replay: int = 1_000_000

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> SACState:
        """Fresh networks; the target starts as a copy."""
        actor_key, critic_key = jax.random.split(key)
        actor = SquashedGaussian(spec, self.hidden, key=actor_key)
        critic = Critic(spec, 0, self.hidden, heads=self.heads, key=critic_key)
        temperature = Temperature(jnp.log(jnp.float32(self.initial_temperature)))
        optimizer = self._optimizer()
        return SACState(
            actor=actor,
            critic=critic,
            # A copy, because `update` takes over the memory of both.
            target_critic=jax.tree.map(jnp.copy, critic),
            temperature=temperature,
            actor_optimizer=optimizer.init(eqx.filter(actor, eqx.is_array)),
            critic_optimizer=optimizer.init(eqx.filter(critic, eqx.is_array)),
            temperature_optimizer=optimizer.init(eqx.filter(temperature, eqx.is_array)),
        )

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def update(
        self, state: SACState, batch: Experience, key: PRNGKeyArray
    ) -> tuple[SACState, Metrics]:
        """One step of every network; `state` must not be used again."""
        optimizer = self._optimizer()
        target_noise, actor_noise = jax.random.normal(key, (2, *batch.action.shape))
        alpha = state.temperature()
        y = self.target(state, batch, target_noise)
        critic, critic_optimizer, critic_metrics = minimise(
            "critic",
            lambda critic: critic_loss(critic, batch.observation, batch.action, y),
            optimizer,
            state.critic,
            state.critic_optimizer,
        )
        actor, actor_optimizer, actor_metrics = minimise(
            "actor",
            lambda actor: actor_loss(actor, critic, alpha, batch.observation, actor_noise),
            optimizer,
            state.actor,
            state.actor_optimizer,
        )
        entropy, target_entropy = actor_metrics["actor/entropy"], -batch.action.shape[-1]
        temperature, temperature_optimizer, temperature_metrics = minimise(
            "temperature",
            lambda temperature: temperature_loss(temperature, entropy, target_entropy),
            optimizer,
            state.temperature,
            state.temperature_optimizer,
        )
        state = SACState(
            actor=actor,
            critic=critic,
            target_critic=moving_average(state.target_critic, critic, rate=self.target_rate),
            temperature=temperature,
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
            temperature_optimizer=temperature_optimizer,
        )
        return state, {**critic_metrics, **actor_metrics, **temperature_metrics}

    def target(
        self, state: SACState, batch: Experience, noise: Float[Array, "rows action_size"]
    ) -> Float[Array, " rows"]:
        """y = stopgrad(r + γ · mask · (min Q_φ̄(s', a') - α log π(a'|s')))."""
        next_action, log_density = state.actor.batch(batch.next_observation, noise)
        q = aggregate(state.target_critic.batch(batch.next_observation, next_action), "min")
        soft_value = q - state.temperature() * log_density
        return td_target(batch.reward, batch.mask, soft_value, discount=self.discount)

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=None)


def actor_loss(
    actor: SquashedGaussian,
    critic: Critic,
    alpha: Float[Array, ""],
    observation: Float[Array, "rows observation_size"],
    noise: Float[Array, "rows action_size"],
) -> tuple[Float[Array, ""], Metrics]:
    """mean (α log π(a|s) - min Q(s, a)), and the entropy -mean log π as a metric."""
    action, log_density = actor.batch(observation, noise)
    q = aggregate(critic.batch(observation, action), "min")
    return jnp.mean(alpha * log_density - q), {"entropy": -jnp.mean(log_density)}


def temperature_loss(
    temperature: Temperature, entropy: Float[Array, ""], target_entropy: float
) -> tuple[Float[Array, ""], Metrics]:
    """α · (entropy - H̄): α falls while the policy has more entropy than H̄, and rises else."""
    alpha = temperature()
    return alpha * jax.lax.stop_gradient(entropy - target_entropy), {"alpha": alpha}


@jax.jit
def act(
    actor: SquashedGaussian,
    observation: Float[Array, " observation_size"],
    noise: Float[Array, " action_size"],
) -> Float[Array, " action_size"]:
    """An action of the policy for one observation."""
    return actor(observation, noise)[0]
