"""Acting under a budget: draw candidates, score them, choose.

Evaluation and deployment both stand on this file, so it knows neither.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.errors import InputError
from sorl.types import Budget


def check_budgets(policy: AbstractPolicy, budgets: Iterable[Budget]) -> None:
    """Raise `InputError` for the first budget that `policy` cannot serve."""
    for budget in budgets:
        policy.check_steps(budget.steps)
        if budget.best_of > 1 and not isinstance(policy, AbstractScoredPolicy):
            raise InputError(
                f"Budget {budget} asks for the best of {budget.best_of} candidates, but "
                f"{type(policy).__name__} has no critic to choose with: use best-of 1, "
                f"that is {budget.steps}x1."
            )


def candidates(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    key: PRNGKeyArray,
) -> Float[Array, "best_of action_size"]:
    """Draw `budget.best_of` independent actions for ONE observation."""
    keys = jax.random.split(key, budget.best_of)
    return jax.vmap(lambda k: policy.sample(observation, steps=budget.steps, key=k))(keys)


def act(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    key: PRNGKeyArray,
) -> Float[Array, " action_size"]:
    """One action for ONE observation: the candidate with the highest score.

    Observation and candidates never meet in a flat batch: the caller vmaps this function, so a
    candidate can only be scored against the observation it was drawn for. Ties go to the first
    candidate. With `best_of=1` nothing is scored.

    Raises:
        InputError: the policy cannot serve the budget.
    """
    check_budgets(policy, [budget])
    actions = candidates(policy, observation, budget=budget, key=key)
    if budget.best_of == 1 or not isinstance(policy, AbstractScoredPolicy):
        return actions[0]
    scores = jax.vmap(lambda action: policy.score(observation, action, steps=budget.steps))(actions)
    return actions[jnp.argmax(scores)]
