"""What is exported: for every number of steps one graph that acts, one that chooses as well.

    4x1    one candidate in 4 steps, nothing is scored
    4xN    any number of candidates in 4 steps, the choice inside, and the critic if it has a say

Both take `observation` [batch, observation_size] and `noise` [batch, candidates, *noise_shape],
standard normal numbers, which the caller draws: so every format computes the same plain function.
Observations, actions and candidates are in the user's units: what standardises observations and
stretches actions is part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.choices import Choice
from sorl.types import Budget, Spec
from sorl.verifiers import Verifier


class Graph(NamedTuple):
    """One of them.

    Attributes:
        steps: sampling steps of a candidate.
        chooses: whether it chooses among candidates.
    """

    steps: int
    chooses: bool

    def __str__(self) -> str:
        return f"{self.steps}x{'N' if self.chooses else 1}"

    def inputs(self, policy: AbstractPolicy, spec: Spec) -> dict[str, tuple[int | str, ...]]:
        """Names and shapes of what it takes; sizes that the caller chooses are words."""
        candidates = "candidates" if self.chooses else 1
        return {
            "observation": ("batch", spec.observation_size),
            "noise": ("batch", candidates, *policy.noise_shape(self.steps)),
        }

    def outputs(self, spec: Spec, choice: Choice) -> dict[str, tuple[int | str, ...]]:
        """Names and shapes of what it answers, see `Outputs`."""
        action: dict[str, tuple[int | str, ...]] = {"action": ("batch", spec.action_size)}
        if not self.chooses:
            return action
        action["candidates"] = ("batch", "candidates", spec.action_size)
        return action | ({"scores": ("batch", "candidates")} if choice.reads_scores else {})


def graphs_of(budgets: Iterable[Budget]) -> list[Graph]:
    """The graphs that serve `budgets`, without repetition, by steps."""
    return sorted({Graph(budget.steps, budget.best_of > 1) for budget in budgets})


class Contents(NamedTuple):
    """What an export is made of.

    Attributes:
        policy: the policy, for ONE observation.
        spec: sizes of its observations and actions.
        graphs: which graphs.
        verifier: how the critic's heads become the scores.
        choice: how those that choose do it: best, central or typical.
        default: the budget for a caller that names none.
    """

    policy: AbstractPolicy
    spec: Spec
    graphs: Sequence[Graph]
    verifier: Verifier
    choice: Choice
    default: Budget

    def scores(self, graph: Graph) -> bool:
        """Whether a graph scores its candidates."""
        return graph.chooses and self.choice.reads_scores


class Outputs(NamedTuple):
    """What a graph answers: arrays of JAX, or of NumPy from what runs without it.

    Attributes:
        action: in the user's units, `[batch, action_size]`, like the candidates.
        candidates: in the order of their noise, `[batch, candidates, action_size]`.
        scores: of each candidate, `[batch, candidates]`, higher is better; None where nothing is
            scored.
    """

    action: Any
    candidates: Any
    scores: Any


def candidates_of(
    policy: AbstractPolicy,
    graph: Graph,
    observation: Float[Array, "batch observation_size"],
    noise: Float[Array, "batch candidates *noise_shape"],
) -> Float[Array, "batch candidates action_size"]:
    """The actions in [-1, 1] that noise becomes, for observations in the user's units."""
    return _over_candidates(
        lambda s, z: policy.from_noise(policy.units.to_network(s), z, steps=graph.steps)
    )(observation, noise)


def scores_of(
    policy: AbstractScoredPolicy,
    graph: Graph,
    verifier: Verifier,
    observation: Float[Array, "batch observation_size"],
    candidates: Float[Array, "batch candidates action_size"],
) -> Float[Array, "batch candidates"]:
    """The score of every candidate in [-1, 1], for observations in the user's units."""
    return _over_candidates(
        lambda s, a: verifier.score(policy, policy.units.to_network(s), a, steps=graph.steps)
    )(observation, candidates)


def decide(
    policy: AbstractPolicy,
    graph: Graph,
    verifier: Verifier,
    choice: Choice,
    observation: Float[Array, "batch observation_size"],
    noise: Float[Array, "batch candidates *noise_shape"],
) -> Outputs:
    """The graph in JAX: what `sorl.inference.act` does, from given noise."""
    candidates = candidates_of(policy, graph, observation, noise)
    in_user_units = _over_candidates(lambda _, action: policy.units.to_user(action))
    if not graph.chooses:
        candidates = in_user_units(observation, candidates)
        return Outputs(candidates[:, 0], candidates, None)
    scores = None
    if choice.reads_scores:
        assert isinstance(policy, AbstractScoredPolicy)
        scores = scores_of(policy, graph, verifier, observation, candidates)
    with jax.ensure_compile_time_eval():
        unread = jax.random.key(0)  # it would be an operation of the graph otherwise

    def chosen(
        actions: Float[Array, "candidates action_size"], scores: Float[Array, " candidates"]
    ) -> Float[Array, " action_size"]:
        return actions[choice.choose(actions, scores, key=unread)]

    given = jnp.zeros(candidates.shape[:2]) if scores is None else scores
    actions = jax.vmap(policy.units.to_user)(jax.vmap(chosen)(candidates, given))
    return Outputs(actions, in_user_units(observation, candidates), scores)


def _over_candidates(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of an observation and something of a candidate, for all candidates of a batch."""
    return jax.vmap(jax.vmap(function, in_axes=(None, 0)))
