"""Branches: what every candidate of a state is really worth, from the same state of the simulator.

An episode is played with one candidate a decision and its actions are kept. At one of its steps the
candidates of a budget are drawn and scored. Then for each candidate the episode is played again
from its start: the kept actions up to that step, the candidate, and from there on the policy with
one candidate a decision, several times with different noise (the same for every candidate). Playing
again restores any environment whose steps follow from its seed and its actions, without knowing how
it keeps its state; that it does is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sorl import inference
from sorl.algorithm import AbstractScoredPolicy
from sorl.encoders import frames_of
from sorl.environments import VectorEnvironment
from sorl.errors import InputError
from sorl.rollouts import GroupActor, environment_id, run_rollouts
from sorl.samplers import draw
from sorl.types import MAX_SEED, Budget, Member

if TYPE_CHECKING:
    from sorl.data.names import EnvironmentName


class Branches(NamedTuple):
    """Candidates of some states and what became of each.

    Attributes:
        actions: the candidates, float32 `[states, candidates, action_size]`.
        values: what every head of the critic says of them, `[states, candidates, heads]`.
        returns: undiscounted return of the episode, `[states, candidates, tails]`; up to the state
            it is the same for all candidates.
        success: whether the episode succeeded, likewise.
    """

    actions: Float[np.ndarray, "states candidates action_size"]
    values: Float[np.ndarray, "states candidates heads"]
    returns: Float[np.ndarray, "states candidates tails"]
    success: Float[np.ndarray, "states candidates tails"]


@dataclass
class _Kept:
    """One episode as it was played first: observation and action of every step."""

    observations: list[np.ndarray]
    actions: list[np.ndarray]


class _Keeping:
    """Acts as `actor` does and keeps what it saw and did."""

    def __init__(self, actor: GroupActor) -> None:
        self.member = actor.member
        self.start = actor.start
        self.kept: dict[int, _Kept] = {}
        self._actor = actor

    def __call__(self, observations: np.ndarray, clock: np.ndarray) -> np.ndarray:
        actions = self._actor(observations, clock)
        for (episode, _), observation, action in zip(clock, observations, actions, strict=True):
            kept = self.kept.setdefault(int(episode), _Kept([], []))
            kept.observations.append(observation.astype(np.float32))
            kept.actions.append(action)
        return actions


class _Branching:
    """Plays kept episodes again, with a candidate in the place of one action.

    Its episodes count through states, candidates and tails, the last one fastest.
    """

    def __init__(
        self,
        actor: GroupActor,
        kept: list[_Kept],
        steps: list[int],
        candidates: np.ndarray,
        tails: int,
    ) -> None:
        self.member = actor.member
        self._actor = actor
        self._kept = kept
        self._steps = steps
        self._candidates = candidates
        self._tails = tails

    def _place(self, episode: int) -> tuple[int, int, int]:
        state, rest = divmod(episode, self._candidates.shape[1] * self._tails)
        return state, *divmod(rest, self._tails)

    def start(self, episode: int) -> int:
        return self._actor.start(self._place(episode)[0])

    def __call__(self, observations: np.ndarray, clock: np.ndarray) -> np.ndarray:
        places = [self._place(int(episode)) for episode, _ in clock]
        # Tails have noise of their own, other than that of the kept episodes.
        shared = [len(self._kept) + state * self._tails + tail for state, _, tail in places]
        actions = self._actor(observations, np.stack([shared, clock[:, 1]], axis=1)).copy()
        for row, (state, candidate, _) in enumerate(places):
            kept, branching, step = self._kept[state], self._steps[state], int(clock[row, 1])
            if step > branching:
                continue
            seen = observations[row].astype(np.float32)
            if not np.array_equal(seen, kept.observations[step]):
                raise InputError(
                    f"Played again with the same seed and actions, step {step} of an episode of "
                    f"{self.member} shows another observation: this environment does not follow "
                    "from its seed, so its candidates cannot be compared."
                )
            replayed = step < branching
            actions[row] = kept.actions[step] if replayed else self._candidates[state, candidate]
        return actions


def branch(
    policy: AbstractScoredPolicy,
    member: Member,
    environment: EnvironmentName | str,
    *,
    budget: Budget,
    states: int,
    tails: int,
    seed: int = 0,
    workers: int = 1,
    max_episode_steps: int | None = None,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> Branches:
    """Roll out every candidate of some states of the policy's own episodes.

    Args:
        policy: ONE member's policy.
        member: its task and seed.
        environment: see `sorl.evaluation.Evaluator`.
        budget: whose candidates are tried; at least 2 of them.
        states: number of states, each of another episode, at a step drawn uniformly; at least 1.
        tails: times that each candidate's episode is played to its end, at least 1.
        seed: seed of everything random, 0 to `MAX_SEED`.
        workers: processes that step environments.
        max_episode_steps: see `sorl.evaluation.Evaluator`.
        on_episode: called with the number of episodes that are done and of all.

    Raises:
        InputError: a number is out of range, the policy cannot serve the budget, or the environment
            cannot be played again.
    """
    if budget.best_of < 2 or states < 1 or tails < 1 or not 0 <= seed <= MAX_SEED:
        raise InputError(
            f"Branches of {states} states with {budget.best_of} candidates, {tails} tails and seed "
            f"{seed} are not possible: give at least 1 state, 2 candidates, 1 tail and a seed "
            f"from 0 to {MAX_SEED}."
        )
    inference.check(policy, budget)
    total, done = states * (1 + budget.best_of * tails), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_episode(done, total)

    name = environment_id(environment, member.task)
    with VectorEnvironment(
        name,
        slots=8 * workers,
        workers=workers,
        max_episode_steps=max_episode_steps,
        frames=frames_of(policy),
    ) as vector:
        actor = GroupActor(policy, member, Budget(budget.steps, 1), seed)
        actor.prepare(vector.sizes)
        actor.check_range(vector.sizes)
        keeping = _Keeping(actor)
        run_rollouts(vector, [keeping], [name], episodes=states, on_episode=count)
        kept = [keeping.kept[episode] for episode in range(states)]
        random = np.random.default_rng(seed)
        steps = [int(random.integers(len(episode.actions))) for episode in kept]
        observed = np.stack([e.observations[t] for e, t in zip(kept, steps, strict=True)])
        actions, values = _candidates(policy, observed, budget, seed)
        branching = _Branching(actor, kept, steps, actions, tails)
        last = run_rollouts(
            vector,
            [branching],
            [name],
            episodes=states * budget.best_of * tails,
            on_episode=count,
        )[0]
    shape = (states, budget.best_of, tails)
    return Branches(
        actions, values, last["episode_return"].reshape(shape), last["success"].reshape(shape)
    )


def _candidates(
    policy: AbstractScoredPolicy,
    observations: Float[np.ndarray, "states observation_size"],
    budget: Budget,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    def one(observation: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        observation = policy.units.to_network(observation)
        # Drawn by themselves, so all in the budget's steps, which the critic is told.
        actions = draw(policy, observation, budget=budget, key=key)
        values = jax.vmap(lambda action: policy.values(observation, action, steps=budget.steps))
        return jax.vmap(policy.units.to_user)(actions), values(actions)

    keys = jax.random.split(jax.random.key(seed), len(observations))
    actions, values = eqx.filter_jit(jax.vmap(one))(jnp.asarray(observations), keys)
    return np.array(actions), np.array(values)


def rank_correlation(
    scores: Float[np.ndarray, "states candidates"], returns: Float[np.ndarray, "states candidates"]
) -> Float[np.ndarray, " states"]:
    """Spearman's correlation of scores and returns among the candidates of each state.

    NaN for a state whose candidates all have one score or one return: there is nothing to rank.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1) for values in (scores, returns)]
    x, y = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.where(scale > 0, (x * y).sum(axis=-1) / np.where(scale > 0, scale, 1), np.nan)
