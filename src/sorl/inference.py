"""Acting under a budget: draw candidates, score them, choose; and which budgets can be served.

Evaluation and deployment both stand on this file, so it knows neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl import choices
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, AbstractScoredPolicy
from sorl.choices import Choice
from sorl.errors import InputError
from sorl.samplers import Candidates, Sampler, candidates, check_sampler, draw, joined
from sorl.types import Budget, Spec
from sorl.verifiers import OWN, Verifier

USUAL_BUDGETS = (Budget(1, 1), Budget(4, 1), Budget(4, 8))
"""Fast, more steps, and more candidates as well: what is evaluated where it can be served."""


def servable_budgets(
    algorithm: AbstractAlgorithm[Any], budgets: Iterable[Budget] = USUAL_BUDGETS
) -> tuple[Budget, ...]:
    """The budgets to evaluate where an algorithm has a say in them, by steps and then best-of.

    `budgets` and the algorithm's `own_budget`, as far as the policy that these
    hyperparameters give can serve them. Nothing is computed: the policy is only traced.
    """
    policy = policy_skeleton(algorithm)
    return tuple(
        budget for budget in sorted({*budgets, algorithm.own_budget}) if serves(policy, budget)
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
                f"that is {budget.steps}x1, or the choice central, which needs none."
            )


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Spending fewer candidates where they hardly differ: never more than the budget.

    The first `first_of(best_of)` candidates are drawn. Where the standard deviation of their scores
    is at most `threshold`, the choice is among them; elsewhere the rest is drawn too. That the
    spread of Q tells how much compute a state deserves is an idea of arXiv 2601.14234; the rule is
    ours.

    Args:
        threshold: in units of the critic, at least 0. `sorl calibrate` finds the one that half of
            the held-out states exceed.

    Raises:
        InputError: the threshold is negative or not finite.
    """

    threshold: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.threshold < float("inf"):
            raise InputError(f"Adaptive threshold={self.threshold} must be a number, 0 or more.")


def first_of(best_of: int) -> int:
    """How many candidates adaptive spending draws everywhere: a quarter, at least 2."""
    return max(2, best_of // 4)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a budget is spent: how candidates are drawn, and by what one of them is chosen.

    Args:
        sampler: one of `sorl.samplers.Sampler`; best-of-N of independent draws by default.
        verifier: how the critic's heads become a score; as the method does by itself by default.
        choice: how the scores decide; as the method does by itself by default.
        adaptive: spend fewer candidates where they hardly differ; everywhere all by default.
    """

    sampler: Sampler = "independent"
    verifier: Verifier = OWN
    choice: Choice = choices.OWN
    adaptive: Adaptive | None = None


USUAL = Strategy()


class Considered(NamedTuple):
    """Candidates and the choice among them.

    Attributes:
        candidates: what was drawn; the scores are 0 where the policy has no critic.
        chosen: the place of the chosen one.
    """

    candidates: Candidates
    chosen: Int[Array, ""]


def check(policy: AbstractPolicy, budget: Budget, strategy: Strategy = USUAL) -> None:
    """Raise `InputError` if `policy` cannot serve `budget` by `strategy`."""
    if strategy.adaptive is not None and strategy.sampler != "independent":
        raise InputError(
            f"Adaptive spending draws independent candidates, not those of the sampler "
            f"{strategy.sampler}: leave one of them out."
        )
    policy.check_steps(budget.steps)
    check_sampler(policy, budget, strategy.sampler)
    if strategy.choice.reads_scores or strategy.adaptive is not None:
        check_budgets(policy, [budget])


def resolved(policy: AbstractPolicy, choice: Choice) -> Choice:
    """The choice, `own` replaced by the method's; without a critic by best, which is refused."""
    if choice.rule != "own":
        return choice
    scored = isinstance(policy, AbstractScoredPolicy)
    return policy.own_choice if scored else AbstractScoredPolicy.own_choice


def serves(policy: AbstractPolicy, budget: Budget, strategy: Strategy = USUAL) -> bool:
    """Whether `policy` can serve `budget` by `strategy`."""
    try:
        check(policy, budget, strategy)
    except InputError:
        return False
    return True


def consider(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    strategy: Strategy = USUAL,
    key: PRNGKeyArray,
) -> Considered:
    """The candidates of a budget for ONE observation, in the order drawn, and which is chosen.

    Observation and candidates are in the user's units.

    All of the budget is spent, adaptive spending or not.

    Raises:
        InputError: the policy cannot serve the budget by this strategy.
    """
    check(policy, budget, strategy)
    observation = policy.units.to_network(observation)
    found = _candidates(policy, observation, budget, strategy, key)
    chosen = _chosen(policy, found, strategy, key)
    return Considered(found._replace(actions=jax.vmap(policy.units.to_user)(found.actions)), chosen)


def act(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    strategy: Strategy = USUAL,
    key: PRNGKeyArray,
) -> Float[Array, " action_size"]:
    """One action for ONE observation, both in the user's units, among the candidates of a budget.

    Observation and candidates never meet in a flat batch: the caller vmaps this function, so a
    candidate can only be scored against the observation it was drawn for. With `best_of=1` nothing
    is scored.

    Raises:
        InputError: the policy cannot serve the budget by this strategy.
    """
    return act_and_count(policy, observation, budget=budget, strategy=strategy, key=key)[0]


def act_and_count(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    strategy: Strategy = USUAL,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " action_size"], Int[Array, ""]]:
    """The action of `act`, and how many candidates it was chosen among.

    Under vmap adaptive spending saves no work, for all rows of a batch do what one of them needs;
    the count is still that of each row.

    Raises:
        InputError: the policy cannot serve the budget by this strategy.
    """
    check(policy, budget, strategy)
    seen = policy.units.to_network(observation)
    action, count = _act_and_count(policy, seen, budget, strategy, key)
    return policy.units.to_user(action), count


def _act_and_count(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    budget: Budget,
    strategy: Strategy,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " action_size"], Int[Array, ""]]:
    """The same between networks: candidates are compared in [-1, 1]."""
    every = jnp.asarray(budget.best_of)
    if budget.best_of == 1:
        return draw(policy, observation, budget=budget, key=key)[0], every
    adaptive, begin_with = strategy.adaptive, first_of(budget.best_of)
    if adaptive is None or budget.best_of <= begin_with:
        found = _candidates(policy, observation, budget, strategy, key)
        return found.actions[_chosen(policy, found, strategy, key)], every
    first_key, rest_key = jax.random.split(key)
    few = Budget(budget.steps, begin_with)
    rest = Budget(budget.steps, budget.best_of - begin_with)
    first = _candidates(policy, observation, few, strategy, first_key)

    def go_on() -> tuple[Float[Array, " action_size"], Int[Array, ""]]:
        later = _candidates(policy, observation, rest, strategy, rest_key)
        found = joined([first, later])
        return found.actions[_chosen(policy, found, strategy, key)], every

    def stop() -> tuple[Float[Array, " action_size"], Int[Array, ""]]:
        chosen = first.actions[_chosen(policy, first, strategy, key)]
        return chosen, jnp.asarray(begin_with)

    return jax.lax.cond(jnp.std(first.scores) > adaptive.threshold, go_on, stop)


def _candidates(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    budget: Budget,
    strategy: Strategy,
    key: PRNGKeyArray,
) -> Candidates:
    def score(action: Float[Array, " action_size"], steps: int) -> Float[Array, ""]:
        if not isinstance(policy, AbstractScoredPolicy):
            return jnp.zeros(())
        return strategy.verifier.score(policy, observation, action, steps=steps)

    return candidates(policy, observation, score, budget=budget, sampler=strategy.sampler, key=key)


def _chosen(
    policy: AbstractPolicy, found: Candidates, strategy: Strategy, key: PRNGKeyArray
) -> Int[Array, ""]:
    return resolved(policy, strategy.choice).choose(found.actions, found.scores, key=key)
