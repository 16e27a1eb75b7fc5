"""Acting under a budget: draw candidates, score them, choose; and which budgets can be served.

Evaluation and deployment both stand on this file, so it knows neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, AbstractScoredPolicy
from sorl.errors import InputError
from sorl.samplers import Candidates, Sampler, candidates, check_sampler, draw
from sorl.types import Budget, Spec
from sorl.verifiers import OWN, Verifier

USUAL_BUDGETS = (Budget(1, 1), Budget(4, 1), Budget(4, 8))
"""Fast, more steps, and more candidates as well: what is evaluated where it can be served."""


def servable_budgets(
    algorithm: AbstractAlgorithm[Any], budgets: Iterable[Budget] = USUAL_BUDGETS
) -> tuple[Budget, ...]:
    """The budgets to evaluate where an algorithm has a say in them, by steps and then best-of.

    `budgets` and the algorithm's own `default_budget`, as far as the policy that these
    hyperparameters give can serve them. Nothing is computed: the policy is only traced.
    """
    policy = policy_skeleton(algorithm)
    return tuple(
        budget for budget in sorted({*budgets, algorithm.default_budget}) if _serves(policy, budget)
    )


def policy_skeleton(algorithm: AbstractAlgorithm[Any]) -> AbstractPolicy:
    """A policy of `algorithm` with shapes in place of its arrays, for `check_budgets`.

    Sizes of observations and actions have no part in what a policy can serve; here they are 1.
    """
    return eqx.filter_eval_shape(
        lambda key: algorithm.policy(algorithm.init(Spec(1, 1), key=key)), jax.random.key(0)
    )


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


def _serves(policy: AbstractPolicy, budget: Budget) -> bool:
    try:
        check_budgets(policy, [budget])
    except InputError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a budget is spent: how candidates are drawn, and by what one of them is chosen.

    Args:
        sampler: one of `sorl.samplers.Sampler`; best-of-N of independent draws by default.
        verifier: how the critic's heads become a score; as the method does by itself by default.
    """

    sampler: Sampler = "independent"
    verifier: Verifier = OWN


USUAL = Strategy()


def check(policy: AbstractPolicy, budget: Budget, strategy: Strategy = USUAL) -> None:
    """Raise `InputError` if `policy` cannot serve `budget` by `strategy`."""
    check_budgets(policy, [budget])
    check_sampler(policy, budget, strategy.sampler)


def consider(
    policy: AbstractScoredPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    strategy: Strategy = USUAL,
    key: PRNGKeyArray,
) -> Candidates:
    """The candidates of a budget for ONE observation, with their scores, in the order drawn.

    Raises:
        InputError: the policy cannot serve the budget by this strategy.
    """
    check(policy, budget, strategy)

    def score(action: Float[Array, " action_size"], steps: int) -> Float[Array, ""]:
        return strategy.verifier.score(policy, observation, action, steps=steps)

    return candidates(policy, observation, score, budget=budget, sampler=strategy.sampler, key=key)


def act(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    strategy: Strategy = USUAL,
    key: PRNGKeyArray,
) -> Float[Array, " action_size"]:
    """One action for ONE observation: the candidate with the highest score.

    Observation and candidates never meet in a flat batch: the caller vmaps this function, so a
    candidate can only be scored against the observation it was drawn for. Ties go to the first
    candidate. With `best_of=1` nothing is scored.

    Raises:
        InputError: the policy cannot serve the budget by this strategy.
    """
    check(policy, budget, strategy)
    if budget.best_of == 1 or not isinstance(policy, AbstractScoredPolicy):
        return draw(policy, observation, budget=budget, key=key)[0]
    found = consider(policy, observation, budget=budget, strategy=strategy, key=key)
    return found.actions[jnp.argmax(found.scores)]
