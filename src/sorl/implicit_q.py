"""Implicit Q-learning: a critic that never asks for an action outside the data.

    V      L_V = mean L_τ(min over heads of Q_φ̄(s, a) - V_ψ(s)),   L_τ(u) = |τ - 1(u < 0)| u²
    Q      L_Q = mean (Q_φ(s, a) - (r + γ · mask · V_ψ(s')))² over rows and heads
    φ̄ ← φ̄ + τ_target (φ - φ̄)

(Kostrikov et al. 2021, arXiv 2110.06169, equations 5 and 6.) It does not see the policy, so IQL,
IDQL, SRPO and IFQL share it and differ in how they draw a policy from it.

The order is that of the paper's pseudocode: Q's target reads V after its step of the same update.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.losses import aggregate, critic_loss, expectile_loss, td_target
from sorl.nn import Critic, ValueNetwork
from sorl.optim import minimise, moving_average
from sorl.types import Spec, Transition


class ImplicitQ(eqx.Module):
    """The networks and their optimisers' states."""

    critic: Critic
    target_critic: Critic
    value: ValueNetwork
    critic_optimizer: optax.OptState
    value_optimizer: optax.OptState


def init(
    spec: Spec,
    hidden: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    *,
    heads: int,
    key: PRNGKeyArray,
) -> ImplicitQ:
    """Fresh networks; the target starts as a copy."""
    critic_key, value_key = jax.random.split(key)
    critic = Critic(spec, 0, hidden, heads=heads, key=critic_key)
    value = ValueNetwork(spec, hidden, key=value_key)
    return ImplicitQ(
        critic=critic,
        target_critic=critic,
        value=value,
        critic_optimizer=optimizer.init(eqx.filter(critic, eqx.is_array)),
        value_optimizer=optimizer.init(eqx.filter(value, eqx.is_array)),
    )


def update(
    state: ImplicitQ,
    batch: Transition,
    optimizer: optax.GradientTransformation,
    *,
    discount: float,
    expectile: float,
    target_rate: float,
) -> tuple[ImplicitQ, dict[str, Float[Array, ""]]]:
    """One step of V, one of Q, one of the average.

    Returns:
        The state and metrics `critic/...` and `value/...`.
    """
    q = lowest_q(state.target_critic, batch)
    value, value_optimizer, value_metrics = minimise(
        "value",
        lambda value: value_loss(value, batch, q, expectile=expectile),
        optimizer,
        state.value,
        state.value_optimizer,
    )
    target = td_target(
        batch.reward, batch.mask, value.batch(batch.next_observation), discount=discount
    )
    critic, critic_optimizer, critic_metrics = minimise(
        "critic",
        lambda critic: critic_loss(critic, batch.observation, batch.action, target),
        optimizer,
        state.critic,
        state.critic_optimizer,
    )
    return ImplicitQ(
        critic=critic,
        target_critic=moving_average(state.target_critic, critic, rate=target_rate),
        value=value,
        critic_optimizer=critic_optimizer,
        value_optimizer=value_optimizer,
    ), {**critic_metrics, **value_metrics}


def value_loss(
    value: ValueNetwork,
    batch: Transition,
    q: Float[Array, " rows"],
    *,
    expectile: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L_V towards the values `q` of the logged actions, and the mean of V as a metric."""
    v = value.batch(batch.observation)
    return jnp.mean(expectile_loss(q - v, expectile=expectile)), {"v": jnp.mean(v)}


def lowest_q(critic: Critic, batch: Transition) -> Float[Array, " rows"]:
    """min over heads of Q of the logged actions."""
    return aggregate(critic.batch(batch.observation, batch.action), "min")


def advantage(state: ImplicitQ, batch: Transition) -> Float[Array, " rows"]:
    """A = min over heads of Q_φ̄(s, a) - V(s) of the logged actions; no gradient is meant."""
    return lowest_q(state.target_critic, batch) - state.value.batch(batch.observation)
