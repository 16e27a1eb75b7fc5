"""Samplers: how the candidates of a budget are drawn. Each costs no more than `steps x best_of`.

    independent  best_of draws in `steps` steps each
    spread       the same number of candidates over 1, 2, 4, ..., `steps` steps, in shares as equal
                 as can be, each scored as an action drawn in its own number of steps: few steps
                 find other modes than many, and cost less
    renoise      rounds: the first draws, each later one mixes noise into the best candidate so far
                 up to half of the way and takes the other half of the steps again, so what has been
                 computed is used again and a later candidate costs half

Everything is for ONE observation; callers vmap. The idea of renoising under a critic is that of
arXiv 2605.12416; the number of rounds and the place to which noise goes back are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl.algorithm import AbstractPolicy, AbstractRenoisingPolicy
from sorl.errors import InputError
from sorl.types import Budget

Sampler = Literal["independent", "spread", "renoise"]

ROUNDS = 4
"""Most rounds of `renoise`."""

Score = Callable[[Float[Array, " action_size"], int], Float[Array, ""]]
"""From an action and the number of steps it was drawn in to its score."""


class Candidates(NamedTuple):
    """What was drawn, and what the verifier says of it.

    Attributes:
        actions: `[best_of, action_size]`, in [-1, 1].
        scores: `[best_of]`, higher is better.
        steps: sampling steps of each, `[best_of]`.
    """

    actions: Float[Array, "best_of action_size"]
    scores: Float[Array, " best_of"]
    steps: Int[Array, " best_of"]


def check_sampler(policy: AbstractPolicy, budget: Budget, sampler: Sampler) -> None:
    """Raise `InputError` if `policy` cannot serve `budget` by this sampler.

    The steps themselves are for `sorl.inference.check_budgets` to check.
    """
    if sampler not in get_args(Sampler):
        raise InputError(f"There is no sampler {sampler!r}: use {', '.join(get_args(Sampler))}.")
    if sampler != "renoise" or budget.best_of == 1:
        return
    if not isinstance(policy, AbstractRenoisingPolicy):
        raise InputError(
            f"{type(policy).__name__} cannot take its candidates back to the middle of their way: "
            "use the sampler independent or spread."
        )
    if budget.steps % 2:
        raise InputError(
            f"The sampler renoise takes half of the steps again, and {budget.steps} has no half: "
            "use an even number of steps."
        )


def draw(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    *,
    budget: Budget,
    count: int | None = None,
    key: PRNGKeyArray,
) -> Float[Array, "count action_size"]:
    """`count` independent actions, all in `budget.steps` steps; `budget.best_of` if None."""
    keys = jax.random.split(key, budget.best_of if count is None else count)
    return jax.vmap(lambda k: policy.sample(observation, steps=budget.steps, key=k))(keys)


def candidates(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    score: Score,
    *,
    budget: Budget,
    sampler: Sampler,
    key: PRNGKeyArray,
) -> Candidates:
    """Draw and score the candidates of a budget.

    Raises:
        InputError: as `check_sampler`.
    """
    check_sampler(policy, budget, sampler)
    # One candidate is one draw by every sampler, and by the same key: there is nothing to choose.
    if sampler == "spread" and budget.best_of > 1:
        return _spread(policy, observation, score, budget=budget, key=key)
    if sampler == "renoise" and budget.best_of > 1:
        assert isinstance(policy, AbstractRenoisingPolicy)
        return _renoise(policy, observation, score, budget=budget, key=key)
    return _scored(draw(policy, observation, budget=budget, key=key), score, budget.steps)


def shares(budget: Budget) -> dict[int, int]:
    """How `spread` divides its candidates: number of steps to number of candidates.

    Where they are fewer than the numbers of steps, the smaller ones go without; what does not
    divide evenly goes to the larger ones.
    """
    counts = [2**power for power in range(budget.steps.bit_length()) if 2**power < budget.steps]
    counts = [*counts, budget.steps][-budget.best_of :]
    each, more = divmod(budget.best_of, len(counts))
    return {k: each + (place >= len(counts) - more) for place, k in enumerate(counts)}


def _spread(
    policy: AbstractPolicy,
    observation: Float[Array, " observation_size"],
    score: Score,
    *,
    budget: Budget,
    key: PRNGKeyArray,
) -> Candidates:
    parts = []
    for steps, count in shares(budget).items():
        part = Budget(steps, count)
        actions = draw(policy, observation, budget=part, key=jax.random.fold_in(key, steps))
        parts.append(_scored(actions, score, steps))
    return joined(parts)


def _renoise(
    policy: AbstractRenoisingPolicy,
    observation: Float[Array, " observation_size"],
    score: Score,
    *,
    budget: Budget,
    key: PRNGKeyArray,
) -> Candidates:
    sizes = [len(part) for part in np.array_split(np.arange(budget.best_of), ROUNDS) if len(part)]
    first, *later = jax.random.split(key, len(sizes))
    steps = budget.steps
    actions = draw(policy, observation, budget=budget, count=sizes[0], key=first)
    found = _scored(actions, score, steps)
    for size, round_key in zip(sizes[1:], later, strict=True):
        best = found.actions[jnp.argmax(found.scores)]

        def again(
            k: PRNGKeyArray, best: Float[Array, " action_size"] = best
        ) -> Float[Array, " action_size"]:
            return policy.renoise(observation, best, start=steps // 2, steps=steps, key=k)

        actions = jax.vmap(again)(jax.random.split(round_key, size))
        found = joined([found, _scored(actions, score, steps)])
    return found


def _scored(actions: Float[Array, "count action_size"], score: Score, steps: int) -> Candidates:
    return Candidates(
        actions=actions,
        scores=jax.vmap(lambda action: score(action, steps))(actions),
        steps=jnp.full(actions.shape[0], steps, jnp.int32),
    )


def joined(parts: list[Candidates]) -> Candidates:
    """Candidates one after another."""
    return Candidates(*(jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)))
