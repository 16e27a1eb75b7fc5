"""Acting for the sake of learning: the environments of all members, a step in each at a time.

Every member has environments of its own. An episode's start derives from the member, the
environment and the number of the episode alone, and simulators are deterministic, so the state of a
running episode need not be saved: its seed and its actions bring it back. These starts are other
ones than those of any evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np

from sorl import platform
from sorl.data.dataset import ACTION_LIMIT
from sorl.data.replay import Rows
from sorl.environments import Sizes, VectorEnvironment
from sorl.errors import InputError
from sorl.rollouts import environment_id
from sorl.types import Member
from sorl.units import USUAL, Units

_COLLECTION = 0x0E11  # sets these seeds apart from those of evaluations


class Episodes(NamedTuple):
    """The episodes that are running: what brings them back.

    Attributes:
        number: of the episode, which decides its start, int64 `[members, environments]`.
        length: steps made in this one, int64 `[members, environments]`.
        actions: these steps' actions in the units of the environment, float32
            `[members, environments, max_episode_steps, action_size]`.
        observation: where they have led, float64 `[members, environments, observation_size]`.
    """

    number: np.ndarray
    length: np.ndarray
    actions: np.ndarray
    observation: np.ndarray

    @classmethod
    def none(cls, sizes: Sizes, *, members: int, environments: int) -> Episodes:
        """Room for them."""
        shape = (members, environments)
        return cls(
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros((*shape, sizes.max_episode_steps, sizes.action_size), np.float32),
            np.zeros((*shape, sizes.observation_size), np.float64),
        )


class Ended(NamedTuple):
    """An episode that has ended.

    Attributes:
        member: position of the member.
        episode_return: undiscounted sum of rewards.
        success: success at its last step, 0 or 1.
        length: its steps.
    """

    member: int
    episode_return: float
    success: float
    length: int


def start_seed(member: Member, environment: int, episode: int) -> int:
    """Seed of the start of one episode, from these numbers alone."""
    numbers = [_COLLECTION, member.seed, member.task, environment, episode]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Collector:
    """Owns the environments of all members; a context manager.

    Args:
        environment: see `sorl.evaluation.Evaluator`.
        members: whose environments they are.
        environments: how many each member has.
        workers: worker processes; as many as this process has CPU cores if None.
        units: what the members' observations and actions are for the environment.

    Raises:
        InputError: the environment is unknown or cannot be used, or a number is below 1.
    """

    def __init__(
        self,
        environment: str,
        members: Sequence[Member],
        *,
        environments: int = 1,
        workers: int | None = None,
        units: Units = USUAL,
    ) -> None:
        for name, value in (("environments", environments), ("workers", workers)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is not possible: give at least 1.")
        self._name = environment
        self._members = tuple(members)
        self._environments = environments
        self._units = units
        self._ids = [environment_id(environment, member.task) for member in members]
        slots = len(members) * environments
        self._vector = VectorEnvironment(
            self._ids[0], slots=slots, workers=min(workers or platform.cores(), slots)
        )
        self._places = [divmod(slot, environments) for slot in range(slots)]
        self._episodes = Episodes.none(self.sizes, members=len(members), environments=environments)
        self._ended: list[Ended] = []

    @property
    def sizes(self) -> Sizes:
        """What all of the environments have in common."""
        return self._vector.sizes

    @property
    def episodes(self) -> Episodes:
        """The running episodes; later steps do not change what is returned."""
        return Episodes(*(array.copy() for array in self._episodes))

    @property
    def observations(self) -> np.ndarray:
        """What members see now, as networks see it: float32 `[members, environments, size]`."""
        return self._seen(self._episodes.observation)

    def begin(self, first: int = 0) -> None:
        """Start the first episode everywhere.

        Args:
            first: its number, where earlier acting of the same members has had those below.
        """
        self._episodes.number[:] = first
        self._start(self._places)

    def restore(self, episodes: Episodes) -> list[tuple[int, int]]:
        """Bring episodes back by repeating their actions.

        Returns:
            Positions of the members and environments where that led elsewhere, for the simulator is
            not deterministic or has changed since; a new episode was started there.
        """
        for own, saved in zip(self._episodes, episodes, strict=True):
            own[:] = saved
        self._run({place: self._start_of(place) for place in self._places}, {})
        over = dict.fromkeys(self._places, False)
        for step in range(int(episodes.length.max(initial=0))):
            running = [
                place for place in self._places if episodes.length[place] > step and not over[place]
            ]
            self._run({}, {place: episodes.actions[place][step] for place in running})
            over |= {place: bool(self._record(place)["done"]) for place in running}
        lost = [
            place
            for place in self._places
            if over[place]
            or not np.array_equal(self._record(place)["observation"], episodes.observation[place])
        ]
        for place in lost:
            self._episodes.number[place] += 1
        self._start(lost)
        return lost

    def step(self, actions: np.ndarray) -> Rows:
        """Make one step in every environment, and start the next episode where one has ended.

        Args:
            actions: in [-1, 1], float32 `[members, environments, action_size]`.

        Raises:
            InputError: an action, an observation or a reward is not finite.
        """
        if not np.isfinite(actions).all():
            member = self._members[int(np.argwhere(~np.isfinite(actions))[0, 0])]
            raise InputError(
                f"The policy of {member} gave an action that is not finite: its training has "
                "diverged, so fine-tune an earlier state with a smaller learning rate."
            )
        before, sent = self.observations, self._units.to_user_arrays(actions)
        for place in self._places:
            self._episodes.actions[place][self._episodes.length[place]] = sent[place]
        self._run({}, {place: sent[place] for place in self._places})
        self._episodes.length[:] += 1
        records = self._vector.records(range(self._vector.slots)).reshape(actions.shape[:2])
        self._episodes.observation[:] = records["observation"]
        if not (np.isfinite(records["observation"]).all() and np.isfinite(records["reward"]).all()):
            raise InputError(
                f"The environment {self._name} gave an observation or a reward that is NaN or "
                "infinite: mend the environment."
            )
        rows = Rows(
            observation=before,
            action=np.clip(self._units.network_actions(sent), -ACTION_LIMIT, ACTION_LIMIT),
            reward=records["reward"].astype(np.float32),
            mask=~records["terminated"],
            next_observation=self.observations,
            end=records["done"],
        )
        over = [place for place in self._places if records["done"][place]]
        for place in over:
            record = records[place]
            self._ended.append(
                Ended(
                    place[0],
                    float(record["episode_return"]),
                    float(record["success"]),
                    int(record["length"]),
                )
            )
            self._episodes.number[place] += 1
        self._start(over)
        return rows

    def take_ended(self) -> list[Ended]:
        """The episodes that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def _seen(self, observations: np.ndarray) -> np.ndarray:
        return self._units.network_observations(observations.astype(np.float32))

    def _start_of(self, place: tuple[int, int]) -> tuple[str, int]:
        member, environment = place
        number = int(self._episodes.number[place])
        return self._ids[member], start_seed(self._members[member], environment, number)

    def _start(self, places: Sequence[tuple[int, int]]) -> None:
        self._run({place: self._start_of(place) for place in places}, {})
        for place in places:
            self._episodes.length[place] = 0
            self._episodes.actions[place] = 0
            self._episodes.observation[place] = self._record(place)["observation"]

    def _record(self, place: tuple[int, int]) -> np.void:
        return self._vector.records([self._slot(place)])[0]

    def _slot(self, place: tuple[int, int]) -> int:
        return place[0] * self._environments + place[1]

    def _run(
        self,
        resets: dict[tuple[int, int], tuple[str, int]],
        actions: dict[tuple[int, int], np.ndarray],
    ) -> None:
        """Let every worker do its part, and wait for all."""
        waiting = 0
        for worker in range(self._vector.workers):
            own = range(worker, self._vector.slots, self._vector.workers)
            starts = {self._slot(place): start for place, start in resets.items()}
            steps = {self._slot(place): action for place, action in actions.items()}
            starts = {slot: starts[slot] for slot in own if slot in starts}
            steps = {slot: steps[slot] for slot in own if slot in steps}
            if starts or steps:
                self._vector.send(worker, worker, resets=starts, actions=steps)
                waiting += 1
        while waiting:
            waiting -= len(self._vector.receive())

    def close(self) -> None:
        """End the workers."""
        self._vector.close()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
