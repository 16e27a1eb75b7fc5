"""Measuring a policy for its calibration: latencies, and what the critic believes of a budget.

Latencies are those of `Policy.act` from call to return, compiled before, with an axis of rows and a
seed, the dearest of the usual forms of a call. The budgets take turns, so that a moment in which
the machine is busy with something else meets all of them alike, and no budget profits from caches
that its own last call has filled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from sorl.algorithm import AbstractScoredPolicy
from sorl.deployment.policy import Policy
from sorl.inference import Strategy, first_of
from sorl.types import Budget

Done = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

_STATES_AT_ONCE, _CANDIDATES_AT_ONCE = 256, 8192


def latencies(
    policy: Policy,
    ways: Sequence[tuple[Budget, Strategy]],
    rows: Sequence[int],
    *,
    calls: int,
    on_progress: Done,
) -> Float[np.ndarray, "ways rows calls"]:
    """Milliseconds of every call.

    Args:
        policy: whose `act` is timed; observations are zeros, which cost what others cost.
        ways: budgets and how each is spent; adaptive spending is not timed.
        rows: numbers of observations of one call.
        calls: timed calls for each way and number of rows, at least 1.
        on_progress: called after every round of calls.
    """
    taken = np.zeros((len(ways), len(rows), calls))
    size = policy.spec.observation_size
    for call in range(-1, calls):  # the first round compiles
        for i, (budget, strategy) in enumerate(ways):
            for j, count in enumerate(rows):
                observation = np.zeros((count, size))
                begin = time.perf_counter()
                policy.act(
                    observation,
                    steps=budget.steps,
                    best_of=budget.best_of,
                    sampler=strategy.sampler,
                    verifier=strategy.verifier,
                    choice=strategy.choice,
                    key=call + 1,
                )
                taken[i, j, call] = 1000 * (time.perf_counter() - begin)
        on_progress(call + 1, calls)
    return taken


def belief(
    policy: Policy,
    budget: Budget,
    observations: Float[np.ndarray, "states observation_size"],
    strategy: Strategy,
) -> tuple[float | None, float | None]:
    """`Measured.gain` and `Measured.spread` of one budget on held-out states.

    Every state has a key of its own, so that it does not matter how many are scored at a time.
    """
    if not isinstance(policy.module, AbstractScoredPolicy):
        return None, None
    if budget.best_of == 1:
        return 0.0, None
    states = len(observations)
    keys = jax.random.split(jax.random.key(0), states)
    at_once = max(1, min(_STATES_AT_ONCE, _CANDIDATES_AT_ONCE // budget.best_of))
    gains, spreads = [], []
    for part in np.array_split(np.arange(states), math.ceil(states / at_once)):
        found = policy.act_info(
            observations[part],
            steps=budget.steps,
            best_of=budget.best_of,
            sampler=strategy.sampler,
            verifier=strategy.verifier,
            choice=strategy.choice,
            key=keys[part],
        )
        chosen = np.take_along_axis(found.scores, found.chosen[:, None], axis=1)[:, 0]
        gains.append(chosen - found.scores.mean(axis=1))
        spreads.append(found.scores[:, : first_of(budget.best_of)].std(axis=1))
    return float(np.mean(np.concatenate(gains))), float(np.median(np.concatenate(spreads)))
