"""Groups of episodes: the compiled act, and the loop that feeds the workers.

The unit of work is a group of `LANES` episodes of one member. One compiled program acts for all
lanes of a group at once, and its shape never changes: whatever the number of workers, slots,
members and budgets, an episode sees the same floating-point operations, the same start and the
same noise. So its score is the same, bit for bit, on the same machine. (A product of matrices
rounds differently in another batch size, and contact dynamics turn one different bit into another
episode.) Each group belongs to one worker process, and a worker that is ready never waits for
another one.

Randomness: the start of an episode comes from (seed, task, episode) alone, the sampling noise from
(seed, member, episode, step) alone. Members of one task meet the same starts, and budgets share
starts and noise, which makes their differences less noisy than independent draws would.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from sorl import inference
from sorl.algorithm import AbstractPolicy
from sorl.encoders import image_of
from sorl.environments import Sizes, VectorEnvironment
from sorl.errors import InputError
from sorl.inference import USUAL, Strategy
from sorl.types import Budget, Member
from sorl.units import Units

if TYPE_CHECKING:
    from sorl.data.names import EnvironmentName

LANES = 8
"""Episodes that one call of the compiled act serves; fixed, see the head of this file."""

_LATENCY_CALLS = 100
_LATENCY_SECONDS = 2.0


def environment_id(environment: EnvironmentName | str, task: int) -> str:
    """The id of the environment that a member of `task` acts in.

    Args:
        environment: an OGBench name, whose task is replaced by `task`; or, for data that know no
            tasks, a gymnasium id, `minari:NAME` or `gym:ID`, which need task 0.
        task: the member's task.

    Raises:
        InputError: a task other than 0 of a gymnasium id.
    """
    if not isinstance(environment, str):
        return environment.with_task(task).id
    if task == 0:
        return environment
    from sorl.data.names import EnvironmentName

    return EnvironmentName.parse(environment).with_task(task).id


def episode_seed(seed: int, task: int, episode: int) -> int:
    """Seed of the start of one episode, from these three numbers alone."""
    return int(np.random.SeedSequence([seed, task, episode]).generate_state(1)[0])


class _Flat(NamedTuple):
    """A policy taken apart once, because `eqx.filter_jit` would do so at every call."""

    arrays: list[Array]
    static: tuple[Hashable, ...]


def _flatten(policy: AbstractPolicy) -> _Flat:
    arrays, static = eqx.partition(policy, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    others, rest = jax.tree.flatten(static)
    return _Flat(leaves, (structure, rest, *others))


def _unflatten(flat: _Flat) -> AbstractPolicy:
    structure, rest, *others = flat.static
    return eqx.combine(jax.tree.unflatten(structure, flat.arrays), jax.tree.unflatten(rest, others))


@functools.partial(jax.jit, static_argnames=("static", "budget", "strategy"))
def _act_group(
    arrays: list[Array],
    observations: Float[Array, "lanes observation_size"],
    identity: UInt32[Array, " 3"],
    clock: UInt32[Array, "lanes 2"],
    *,
    static: tuple[Hashable, ...],
    budget: Budget,
    strategy: Strategy,
) -> tuple[Float[Array, "lanes action_size"], Int[Array, " lanes"]]:
    """Act for every lane, and count the candidates.

    `identity` is (seed, task, member's seed), `clock` (episode, step).
    """
    policy = _unflatten(_Flat(arrays, static))
    seed, *member = identity
    key = jax.random.key(seed)
    for number in member:
        key = jax.random.fold_in(key, number)

    def act_lane(
        observation: Float[Array, " observation_size"], now: UInt32[Array, " 2"]
    ) -> tuple[Float[Array, " action_size"], Int[Array, ""]]:
        lane_key = jax.random.fold_in(jax.random.fold_in(key, now[0]), now[1])
        return inference.act_and_count(
            policy, observation, budget=budget, strategy=strategy, key=lane_key
        )

    return jax.vmap(act_lane)(observations, clock)


@functools.partial(jax.jit, static_argnames=("static", "budget", "strategy"))
def _act_one(
    arrays: list[Array],
    observation: Float[Array, " observation_size"],
    seed: UInt32[Array, ""],
    *,
    static: tuple[Hashable, ...],
    budget: Budget,
    strategy: Strategy,
) -> Float[Array, " action_size"]:
    policy = _unflatten(_Flat(arrays, static))
    return inference.act(
        policy, observation, budget=budget, strategy=strategy, key=jax.random.key(seed)
    )


def latency(
    policy: AbstractPolicy, budget: Budget, observation_size: int, strategy: Strategy = USUAL
) -> float:
    """Median milliseconds of one decision for one observation, from host to host.

    Compiled before the clock starts; 100 calls, fewer if they would take over two seconds.
    """
    flat = _flatten(policy)
    act: Any = functools.partial(
        _act_one, flat.arrays, static=flat.static, budget=budget, strategy=strategy
    )
    observation = np.zeros(observation_size, np.float32)
    np.asarray(act(observation, np.asarray(0, np.uint32)))
    times: list[float] = []
    while len(times) < _LATENCY_CALLS and (len(times) < 3 or sum(times) < _LATENCY_SECONDS):
        start = time.perf_counter()
        np.asarray(act(observation, np.asarray(len(times), np.uint32)))
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def select_member(policies: AbstractPolicy, index: int) -> AbstractPolicy:
    """The policy of one member out of stacked ones."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, policies)


@runtime_checkable
class Actor(Protocol):
    """Whoever acts for the groups of one member."""

    member: Member

    def start(self, episode: int) -> int:
        """Seed of the start of one episode."""
        ...

    def __call__(self, observations: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Actions of up to `LANES` observations; `clock` is episode and step of each."""
        ...


class GroupActor:
    """Acts for a group of lanes of one member, at one budget.

    Args:
        policy: ONE member's policy.
        member: decides the noise, together with `seed`.
        budget: test-time compute.
        seed: seed of the evaluation.
        strategy: how the budget is spent.

    Attributes:
        seconds: time spent in acting so far.
        steps: decisions so far.
        candidates: candidates that these decisions were chosen among.
    """

    def __init__(
        self,
        policy: AbstractPolicy,
        member: Member,
        budget: Budget,
        seed: int,
        strategy: Strategy = USUAL,
    ):
        flat = _flatten(policy)
        self._act: Any = functools.partial(
            _act_group, flat.arrays, static=flat.static, budget=budget, strategy=strategy
        )
        self.member = member
        self.units = policy.units
        self._image = image_of(policy)
        self._identity = np.asarray([seed, member.task, member.seed], np.uint32)
        self._seed = seed
        self.seconds = 0.0
        self.steps = 0
        self.candidates = 0

    def prepare(self, sizes: Sizes) -> None:
        """Compile, and check that the policy fits the environment.

        Raises:
            InputError: the policy takes other observations or gives other actions.
        """
        observation_size, action_size = sizes.observation_size, sizes.action_size
        if sizes.image != (self._image.shape if self._image else ()):
            shown = "x".join(map(str, sizes.image))
            raise InputError(
                f"The policy reads {f'images, {self._image}' if self._image else 'states'}, but "
                f"the environment shows {f'images of {shown}' if shown else 'states'} (frames "
                "stacked): evaluate it on the environment whose data it was trained on."
            )
        observations = np.zeros((LANES, observation_size), np.float32)
        clock = np.zeros((LANES, 2), np.uint32)
        try:
            actions = np.asarray(self._act(observations, self._identity, clock)[0])
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The policy cannot take this environment's observations of {observation_size} "
                "numbers: evaluate it on the environment whose data it was trained on "
                f"({str(error).splitlines()[0]})."
            ) from error
        if actions.shape != (LANES, action_size):
            raise InputError(
                f"The policy gives actions of {actions.shape[-1]} numbers, but the environment "
                f"takes {action_size}: evaluate it on the environment it was trained on."
            )

    def check_range(self, sizes: Sizes) -> None:
        """See the function of this name."""
        check_range(self.units, sizes)

    def start(self, episode: int) -> int:
        """Seed of the start of one episode."""
        return episode_seed(self._seed, self.member.task, episode)

    def __call__(self, observations: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Actions of up to `LANES` observations.

        Args:
            observations: shape `[rows, observation_size]`, rows <= LANES.
            clock: episode and step of each row, shape `[rows, 2]`.

        Returns:
            Actions in the units of the environment, shape `[rows, action_size]`.

        Raises:
            InputError: an observation or an action is NaN or infinite.
        """
        rows = len(observations)
        start = time.perf_counter()
        padded = np.zeros((LANES, observations.shape[1]), np.float32)
        with np.errstate(over="ignore"):
            padded[:rows] = observations
        if not np.isfinite(padded).all():
            episode, step = clock[np.argwhere(~np.isfinite(padded))[0, 0]]
            raise InputError(
                f"The environment of {self.member} showed an observation that is NaN or infinite "
                f"in float32, at step {step} of episode {episode}: mend the environment."
            )
        padded_clock = np.zeros((LANES, 2), np.uint32)
        padded_clock[:rows] = clock
        acted, counts = self._act(padded, self._identity, padded_clock)
        actions = np.asarray(acted)[:rows]
        self.seconds += time.perf_counter() - start
        self.steps += rows
        self.candidates += int(np.asarray(counts)[:rows].sum())
        if not np.all(np.isfinite(actions)):
            raise InputError(
                f"The policy of {self.member} gave an action that is not finite: its training "
                "has diverged, so evaluate an earlier checkpoint."
            )
        return actions


def check_range(units: Units, sizes: Sizes) -> None:
    """Check that a policy's actions fit those of the environment, which have units too.

    Raises:
        InputError: they reach over the environment's bounds by more than a hundredth.
    """
    low, high = (
        np.asarray(bounds or [usual] * sizes.action_size)
        for bounds, usual in ((sizes.action_low, -1.0), (sizes.action_high, 1.0))
    )
    least, most = (
        np.asarray(units.action_low or -1),
        np.asarray(units.action_high or 1),
    )
    margin = 0.01 * (high - low)
    if (least < low - margin).any() or (most > high + margin).any():
        raise InputError(
            f"The policy acts between {least.tolist()} and {most.tolist()}, but the "
            f"environment takes {low.tolist()} to {high.tolist()}: the data are in other "
            "units, so this is not their environment."
        )


@dataclass
class _Group:
    """Up to `LANES` slots of one worker that act together, for one member at a time."""

    worker: int
    slots: list[int]
    member: int = -1
    episodes: dict[int, int] = field(default_factory=dict)  # of the slots that run one
    busy: bool = False


def run_rollouts(
    vector: VectorEnvironment,
    actors: Sequence[Actor],
    environment_ids: Sequence[str],
    *,
    episodes: int,
    on_episode: Callable[[], None],
) -> np.ndarray:
    """Run all episodes of all members.

    Args:
        vector: the environments; nothing may be running in them.
        actors: one for each member.
        environment_ids: the environment of each member.
        episodes: episodes for each member.
        on_episode: called when an episode has ended.

    Returns:
        Last record of each episode, shape `[members, episodes]`, see `VectorEnvironment.records`.
    """
    groups = _groups(vector)
    waiting = [deque(range(episodes)) for _ in actors]
    results = np.zeros((len(actors), episodes), vector.records([]).dtype)

    def advance(number: int) -> None:
        """Take in what the group's worker did, act, and give it the next message."""
        group = groups[number]
        observed = list(group.episodes)
        records = dict(zip(observed, vector.records(observed), strict=True))
        for slot, record in records.items():
            if record["done"]:
                results[group.member, group.episodes.pop(slot)] = record
                on_episode()
        running = list(group.episodes)
        if not running:  # free for another member: the one with the most left to do
            group.member = max(range(len(actors)), key=lambda index: len(waiting[index]))
        actor = actors[group.member]
        resets: dict[int, tuple[str, int]] = {}
        for slot in group.slots:
            if slot not in group.episodes and waiting[group.member]:
                episode = group.episodes[slot] = waiting[group.member].popleft()
                resets[slot] = (environment_ids[group.member], actor.start(episode))
        actions: dict[int, np.ndarray] = {}
        if running:
            observations = vector.observations(running)
            clock = np.asarray(
                [(group.episodes[slot], records[slot]["length"]) for slot in running]
            )
            actions = dict(zip(running, actor(observations, clock), strict=True))
        group.busy = bool(resets or actions)
        if group.busy:
            vector.send(group.worker, number, resets=resets, actions=actions)

    for number in range(len(groups)):
        advance(number)
    while any(group.busy for group in groups):
        for number in vector.receive():
            advance(number)
    return results


def _groups(vector: VectorEnvironment) -> list[_Group]:
    """Divide the slots; all slots of a group belong to one worker.

    With more than `LANES` slots, a worker steps one group while another is acted for.
    """
    groups = []
    for worker in range(vector.workers):
        slots = range(worker, vector.slots, vector.workers)
        parts = -(-len(slots) // LANES)
        groups += [_Group(worker, list(slots[part::parts])) for part in range(parts)]
    return groups
