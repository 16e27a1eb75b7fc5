"""Fitted Q evaluation: what a policy would return, from logged transitions alone.

Le, Voloshin and Yue (arXiv 1903.08738): Q of a FIXED policy π is fitted to

    y = r + γ · mask · Q̄(s', a'),   a' ~ π(s')

and the estimate is the mean of Q(s0, a0), a0 ~ π(s0), over starts of episodes. Departures: one
network with a slowly moving target instead of a sequence of regressions, and one a' drawn for each
transition beforehand. Rewards are divided by the largest return in the log, so that Q is about 1 at
most, and observations are standardised; estimates are scaled back.

The estimate is only as good as the data's coverage of what the policy does: where the policy leaves
the data, the network extrapolates, and nothing tells by how much it errs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sorl.losses import td_target
from sorl.nn import Critic
from sorl.optim import minimise, moving_average
from sorl.types import Spec

HIDDEN = (128, 128)
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
# Values spread over 1 / (1 - γ) steps in some 1 / ((1 - γ) τ) updates: 1,000 at γ = 0.99.
TARGET_RATE = 0.1


class Evidence(NamedTuple):
    """Transitions, and what each of several policies would do next; everything as networks see it.

    Attributes:
        observations: `[rows, observation_size]`.
        actions: `[rows, action_size]`.
        next_observations: `[rows, observation_size]`.
        rewards: of each policy's task, `[policies, rows]`.
        masks: 0 where nothing is bootstrapped, `[policies, rows]`.
        next_actions: drawn from each policy, `[policies, rows, action_size]`.
        usable: false where no next action is known, `[policies, rows]`.
        scale: size of the largest returns in the log of each policy's task, above 0, `[policies]`.
        starts: first observations of episodes, `[starts, observation_size]`.
        start_actions: drawn from each policy, `[policies, starts, action_size]`.
    """

    observations: Float[Array, "rows observation_size"]
    actions: Float[Array, "rows action_size"]
    next_observations: Float[Array, "rows observation_size"]
    rewards: Float[Array, "policies rows"]
    masks: Float[Array, "policies rows"]
    next_actions: Float[Array, "policies rows action_size"]
    usable: Bool[Array, "policies rows"]
    scale: Float[Array, " policies"]
    starts: Float[Array, "starts observation_size"]
    start_actions: Float[Array, "policies starts action_size"]


@functools.partial(jax.jit, static_argnames=("discount", "updates"))
def fitted_q(
    evidence: Evidence, *, discount: float, updates: int, key: PRNGKeyArray
) -> Float[Array, " policies"]:
    """The estimated discounted return of each policy from the starts.

    Args:
        evidence: see there.
        discount: γ in [0, 1).
        updates: gradient updates of each network.
        key: of initial networks and batches; batches are the same for all policies.
    """
    mean = evidence.observations.mean(axis=0)
    spread = evidence.observations.std(axis=0)
    # An entry that never changes here may elsewhere, where a small scale would make it enormous.
    scale = jnp.where(spread < 1e-6, 1.0, spread)
    observations, next_observations, starts = (
        (given - mean[None]) / scale[None]
        for given in (evidence.observations, evidence.next_observations, evidence.starts)
    )
    init_key, batch_key = jax.random.split(key)
    # A rate that vanishes in the end: what is left of the noise would be read as value.
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(updates, 1)))

    def estimate(
        rewards: Float[Array, " rows"],
        masks: Float[Array, " rows"],
        next_actions: Float[Array, "rows action_size"],
        usable: Bool[Array, " rows"],
        unit: Float[Array, ""],
        start_actions: Float[Array, "starts action_size"],
    ) -> Float[Array, ""]:
        spec = Spec(observations.shape[1], next_actions.shape[1])
        critic = Critic(spec, 0, HIDDEN, heads=1, key=init_key)
        moving, fixed = eqx.partition(critic, eqx.is_array)

        def step(i: Int[Array, ""], carry: tuple) -> tuple:
            online, target, optimizer_state = carry
            rows = jax.random.randint(
                jax.random.fold_in(batch_key, i), (BATCH_SIZE,), 0, len(observations)
            )
            after = eqx.combine(target, fixed).batch(next_observations[rows], next_actions[rows])
            y = td_target(rewards[rows] / unit, masks[rows], after[:, 0], discount=discount)
            weights = usable[rows].astype(jnp.float32)

            def loss(model: Critic) -> tuple[Float[Array, ""], dict]:
                q = model.batch(observations[rows], evidence.actions[rows])[:, 0]
                return jnp.sum(weights * (q - y) ** 2) / jnp.maximum(weights.sum(), 1), {}

            model, optimizer_state, _ = minimise(
                "critic", loss, optimizer, eqx.combine(online, fixed), optimizer_state
            )
            online = eqx.filter(model, eqx.is_array)
            return online, moving_average(target, online, rate=TARGET_RATE), optimizer_state

        begin = (moving, moving, optimizer.init(moving))
        online, _, _ = jax.lax.fori_loop(0, updates, step, begin)
        return unit * eqx.combine(online, fixed).batch(starts, start_actions).mean()

    return jax.vmap(estimate)(
        evidence.rewards,
        evidence.masks,
        evidence.next_actions,
        evidence.usable,
        evidence.scale,
        evidence.start_actions,
    )
