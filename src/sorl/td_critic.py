"""Temporal-difference learning of the value of a policy, from actions the policy draws at s'.

    Q      L_Q = mean (Q_φ(s, a) - y)² over rows and heads,
           y = stopgrad(r + γ · mask · agg over heads of Q_φ̄(s', a')),   a' ~ π(s')
    φ̄ ← φ̄ + τ (φ - φ̄)

(Sutton 1988; two heads after Fujimoto et al. 2018, arXiv 1802.09477.) Drawing a' is the caller's
business, so every actor-critic whose critic reads s and a alone can share it.
"""

from __future__ import annotations

import equinox as eqx
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.losses import Aggregation, aggregate, critic_loss, td_target
from sorl.nn import Critic
from sorl.optim import minimise, moving_average
from sorl.types import Spec, Transition


class TDCritic(eqx.Module):
    """The critic, its slow average and its optimiser's state."""

    critic: Critic
    target_critic: Critic
    critic_optimizer: optax.OptState


def init(
    spec: Spec,
    hidden: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    *,
    heads: int,
    key: PRNGKeyArray,
) -> TDCritic:
    """Fresh networks; the target starts as a copy."""
    critic = Critic(spec, 0, hidden, heads=heads, key=key)
    optimizer_state = optimizer.init(eqx.filter(critic, eqx.is_array))
    return TDCritic(critic=critic, target_critic=critic, critic_optimizer=optimizer_state)


def update(
    state: TDCritic,
    batch: Transition,
    next_action: Float[Array, "rows action_size"],
    optimizer: optax.GradientTransformation,
    *,
    discount: float,
    aggregation: Aggregation,
    target_rate: float,
) -> tuple[TDCritic, dict[str, Float[Array, ""]]]:
    """One step of Q, one of the average.

    Args:
        state: the critic.
        batch: logged transitions; their `next_action` is not read.
        next_action: a' in [-1, 1], what the policy does at s'.
        optimizer: the optimiser whose state `state` holds.
        discount: γ in [0, 1).
        aggregation: agg, how the heads are combined in the target.
        target_rate: τ of the average.

    Returns:
        The state and metrics `critic/...`.
    """
    y = target(state, batch, next_action, discount=discount, aggregation=aggregation)
    critic, critic_optimizer, metrics = minimise(
        "critic",
        lambda critic: critic_loss(critic, batch.observation, batch.action, y),
        optimizer,
        state.critic,
        state.critic_optimizer,
    )
    target_critic = moving_average(state.target_critic, critic, rate=target_rate)
    return TDCritic(
        critic=critic, target_critic=target_critic, critic_optimizer=critic_optimizer
    ), metrics


def target(
    state: TDCritic,
    batch: Transition,
    next_action: Float[Array, "rows action_size"],
    *,
    discount: float,
    aggregation: Aggregation,
) -> Float[Array, " rows"]:
    """y = stopgrad(r + γ · mask · agg Q_φ̄(s', a'))."""
    next_value = aggregate(
        state.target_critic.batch(batch.next_observation, next_action), aggregation
    )
    return td_target(batch.reward, batch.mask, next_value, discount=discount)
