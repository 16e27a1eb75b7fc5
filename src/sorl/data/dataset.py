"""A logged data set on the device, and uniform sampling of its transitions.

Rows are kept as OGBench stores them (arXiv 2410.20092): an episode of T steps has T + 1 rows, the
last of which has no successor. The next observation of row i is row i + 1, so it is held once. All
tasks of one environment share observations and actions; they differ in rewards and masks alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sorl.data import summary
from sorl.data.checks import check_arrays
from sorl.data.columns import columns_of
from sorl.data.episodes import Logged, RewardRule, assemble
from sorl.data.images import (
    NO_STANDARDISING,
    Images,
    ImageSettings,
    augmented,
    images_of,
    take_apart,
)
from sorl.data.ranges import Bound, learn_units
from sorl.data.summary import Statistics, TaskStatistics
from sorl.errors import InputError
from sorl.types import Spec, Transition
from sorl.units import USUAL, Units

__all__ = ["ACTION_LIMIT", "Dataset", "Mixture", "Statistics", "TaskStatistics"]

ACTION_LIMIT = 1 - 1e-5
"""Actions are clipped to this magnitude: oracles log entries at exactly 1 and -1."""


def places_of(tasks: Sequence[int], known: Sequence[int]) -> np.ndarray:
    """Places of tasks among those that data hold rewards of.

    Raises:
        InputError: the data do not hold one of them, one is named twice, or none is named.
    """
    for task in tasks:
        if task not in known:
            raise InputError(
                f"The data hold no rewards of task {task}; they hold task(s) "
                f"{', '.join(map(str, known))}."
            )
    if not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"Tasks {tuple(tasks)} are not possible: name each task once.")
    return np.array([known.index(task) for task in tasks])


class Mixture(eqx.Module):
    """How rows of several sources are drawn: first a source by its weight, then a row of it.

    Attributes:
        weights: shares of the sources, above 0; they sum to 1.
        first: place in `valid_rows` of each source's first row.
        count: number of each source's rows there.
    """

    weights: Float[Array, " sources"]
    first: Int[Array, " sources"]
    count: Int[Array, " sources"]

    def places(self, key: PRNGKeyArray, batch_size: int) -> Int[Array, " batch"]:
        """Places in `valid_rows`, drawn with replacement."""
        source_key, row_key = jax.random.split(key)
        source = jax.random.categorical(source_key, jnp.log(self.weights), shape=(batch_size,))
        # In whole numbers, since a float32 tells no two rows apart beyond 16 million.
        within = jax.random.randint(row_key, (batch_size,), 0, self.count[source])
        return self.first[source] + within


def uniform_places(key: PRNGKeyArray, count: int, batch_size: int) -> Int[Array, " batch"]:
    """Places among `count` transitions, drawn uniformly with replacement."""
    return jax.random.randint(key, (batch_size,), 0, count)


class Dataset(eqx.Module):
    """Logged experience as device arrays; a pytree, so compiled functions take it as an argument.

    Make one with `load_dataset`, `Dataset.from_episodes`, `Dataset.from_transitions` or
    `Dataset.from_arrays`; all check everything.

    Attributes:
        observations: every row's observation; where there are images, the state beside them,
            which may have no entries.
        actions: every row's action, clipped to `ACTION_LIMIT` in magnitude.
        rewards: r(s, a) of each task.
        masks: false where the task is solved, so that nothing is bootstrapped.
        ends: true on the last row of each episode.
        valid_rows: rows that have a successor in their episode; only they are sampled.
        tasks: number of each task; 0 where the data know no tasks.
        units: what observations and actions were before they were mapped to these.
        mixture: how several sources are drawn from; None for one source, drawn uniformly.
        images: every row's image; None where observations are states.
    """

    observations: Float[Array, "rows state_size"]
    actions: Float[Array, "rows action_size"]
    rewards: Float[Array, "tasks rows"]
    masks: Bool[Array, "tasks rows"]
    ends: Bool[Array, " rows"]
    valid_rows: Int[Array, " transitions"]
    tasks: tuple[int, ...] = eqx.field(static=True)
    units: Units = eqx.field(static=True, default=USUAL)
    mixture: Mixture | None = None
    images: Images | None = None

    @classmethod
    def from_arrays(
        cls,
        observations: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        actions: npt.ArrayLike,
        terminals: npt.ArrayLike,
        rewards: npt.ArrayLike,
        masks: npt.ArrayLike,
        tasks: Sequence[int] = (0,),
        *,
        units: Units = USUAL,
        source: str = "data",
    ) -> Dataset:
        """Check NumPy arrays and put them on the default device.

        An episode of T transitions has T + 1 rows, the last of which is an observation only: its
        action, reward and mask belong to no transition and are never drawn. Arrays with a row a
        transition, as replay buffers and D4RL have them, are for `from_transitions`.

        Args:
            observations: floating point, shape `[rows, observation_size]`, finite; or images,
                uint8 `[rows, height, width, channels]`; or a mapping of such an `image` and a
                floating-point `state`.
            actions: floating point, shape `[rows, action_size]`, in [-1, 1].
            terminals: 1 on the last row of each episode, else 0, shape `[rows]`. The very last
                row must be one, and no episode may consist of a single row. They say nothing
                about success: that is what `masks` are for.
            rewards: r(s, a), shape `[tasks, rows]`.
            masks: 0 where the task is solved, else 1, shape `[tasks, rows]`.
            tasks: different whole numbers from 0 on, one for each row of `rewards`.
            units: what observations and actions were before they were mapped to these.
            source: file or origin that error messages begin with.

        Raises:
            InputError: wrong type, shape or length, a value that is not finite or out of range,
                no episode ends, an empty set; see `sorl.data.checks.check_arrays`.
        """
        frames, state = take_apart(source, "observations", observations)
        if frames is not None and state is None:
            state = np.zeros((len(frames), 0), np.float32)
        logged = check_arrays(
            state, actions, terminals, rewards, masks, tasks, images=frames, source=source
        )
        units.check_sizes(logged.observations.shape[1], logged.actions.shape[1])
        return cls(
            observations=jnp.array(logged.observations),
            actions=jnp.array(np.clip(logged.actions, -ACTION_LIMIT, ACTION_LIMIT)),
            rewards=jnp.array(logged.rewards),
            masks=jnp.array(logged.masks),
            ends=jnp.array(logged.ends),
            valid_rows=jnp.array(np.flatnonzero(~logged.ends).astype(np.int32)),
            tasks=logged.tasks,
            units=units,
            images=None if frames is None else images_of(frames, logged.ends),
        )

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any]],
        *,
        rewards: RewardRule = "logged",
        action_low: Bound = None,
        action_high: Bound = None,
        standardize: bool = False,
        source: str = "episodes",
    ) -> Dataset:
        """Make a data set of your own episodes, in your own units.

        Args:
            episodes: each a mapping with `observations` `[T + 1, ...]` or, where the last one is
                not known, `[T, ...]`, which may be images, or a mapping of `image` and `state`,
                as for `from_arrays`; `actions` `[T, ...]`; `rewards` `[T]`; and, where the task
                can end, `terminations`: `[T]`, or one truth value about the last step. More roles
                are told in `sorl.data.columns`.
            rewards: where rewards come from if the log has none, see `sorl.data.episodes`.
            action_low: least value of every action entry, one number or one each; learnt if None.
            action_high: largest value likewise.
            standardize: whether observations are standardised; the policy then does so itself.
            source: what messages begin with.

        Raises:
            InputError: an episode that cannot be used; the message names it and says why.
        """
        stretches = (
            columns_of(f"{source}, episode {number}", episode, whole=True)
            for number, episode in enumerate(episodes)
        )
        logged = assemble(stretches, rewards=rewards, source=source)
        return cls._from_logged(logged, action_low, action_high, standardize, source)

    @classmethod
    def from_transitions(
        cls,
        observations: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        actions: npt.ArrayLike,
        *,
        rewards: npt.ArrayLike | RewardRule,
        next_observations: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
        terminations: npt.ArrayLike | None = None,
        truncations: npt.ArrayLike | None = None,
        action_low: Bound = None,
        action_high: Bound = None,
        standardize: bool = False,
        source: str = "transitions",
    ) -> Dataset:
        """Make a data set of rows of transitions, such as those of a replay buffer.

        Consecutive rows belong to one episode until one is terminated or truncated, or its next
        observation is not the observation of the row behind it. So even transitions in random
        order are kept exactly, at twice the memory.

        Args:
            observations: `[rows, ...]`; images as for `from_arrays`.
            actions: `[rows, ...]`, in any units.
            rewards: `[rows]`, or a rule, see `sorl.data.episodes`.
            next_observations: `[rows, ...]`; without them the last step of an episode that is
                truncated is lost.
            terminations: `[rows]`, true where the task is over; nothing is bootstrapped there.
            truncations: `[rows]`, true where the log stops and the task went on; a row that is
                terminated too counts as terminated.
            action_low: as for `from_episodes`.
            action_high: as for `from_episodes`.
            standardize: as for `from_episodes`.
            source: what messages begin with.

        Raises:
            InputError: arrays that cannot be used.
        """
        given = {
            "observations": observations,
            "actions": actions,
            "rewards": None if isinstance(rewards, str) else rewards,
            "next_observations": next_observations,
            "terminations": terminations,
            "truncations": truncations,
        }
        columns = columns_of(source, {k: v for k, v in given.items() if v is not None})
        rule: Any = rewards if isinstance(rewards, str) else "logged"
        logged = assemble([columns], rewards=rule, source=source)
        return cls._from_logged(logged, action_low, action_high, standardize, source)

    @classmethod
    def _from_logged(
        cls,
        logged: Logged,
        action_low: Bound,
        action_high: Bound,
        standardize: bool,
        source: str,
    ) -> Dataset:
        if standardize and logged.images is not None:
            raise InputError(f"{source}: {NO_STANDARDISING}")
        units = learn_units(
            logged.observations,
            logged.actions,
            action_low=action_low,
            action_high=action_high,
            standardize=standardize,
            source=source,
        )
        state = units.network_observations(logged.observations)
        return cls.from_arrays(
            state if logged.images is None else {"image": logged.images, "state": state},
            units.network_actions(logged.actions),
            logged.ends,
            logged.rewards[None],
            logged.masks[None],
            units=units,
            source=source,
        )

    @property
    def rows(self) -> int:
        """Rows, including the last one of each episode."""
        return self.ends.shape[0]

    @property
    def spec(self) -> Spec:
        """Sizes of one observation and one action."""
        image = None if self.images is None else self.images.image
        size = self.observations.shape[-1] + (0 if image is None else image.size)
        return Spec(observation_size=size, action_size=self.actions.shape[-1], image=image)

    def reading_images(self, settings: ImageSettings) -> Dataset:
        """The same data, whose images are stacked, encoded and shifted as told; states as is."""
        if self.images is None:
            return self
        return dataclasses.replace(self, images=dataclasses.replace(self.images, settings=settings))

    def observed(self, rows: Int[Array, " rows"]) -> Float[Array, "rows observation_size"]:
        """The observations of some rows, as networks see them."""
        # The rows are valid by contract, so the gather needs no handling of bad indices.
        state = self.observations.at[rows].get(mode="promise_in_bounds")
        if self.images is None:
            return state
        return jnp.concatenate([jax.vmap(self.images.flat)(rows), state], axis=-1)

    def transition(self, row_index: Int[Array, ""], task_index: Int[Array, ""] | int) -> Transition:
        """One transition; callers vmap.

        Args:
            row_index: a row that has a successor, that is one of `valid_rows`.
            task_index: position in `tasks` (not the task's number).

        Returns:
            The transition that starts at that row. On the last one of an episode
            `next_action_mask` is 0: logs hold no action there in general, and `next_action` is
            whatever the episode's last row holds, which is finite.
        """
        here, after = row_index, row_index + 1
        both = jnp.stack([here, after])
        observation, next_observation = self.observed(both)
        action, next_action = self.actions.at[both].get(mode="promise_in_bounds")
        return Transition(
            observation=observation,
            action=action,
            reward=self.rewards[task_index, here],
            mask=self.masks[task_index, here].astype(jnp.float32),
            next_observation=next_observation,
            next_action=next_action,
            next_action_mask=1 - self.ends[after].astype(jnp.float32),
        )

    def sample(
        self, key: PRNGKeyArray, task_index: Int[Array, ""] | int, batch_size: int
    ) -> Transition:
        """Transitions drawn with replacement; made to run inside a compiled update.

        Uniformly, or of a mixture a source by its weight and then uniformly within it. Images
        are shifted at random as `sorl.data.images` tells.

        Args:
            key: random key of this draw.
            task_index: position in `tasks` (not the task's number); may be traced and vmapped.
            batch_size: number of transitions, at least 1.

        Returns:
            The transitions, with a leading axis of `batch_size`.

        Raises:
            InputError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"Batch size {batch_size} is not possible: give at least 1.")
        if self.mixture is None:
            places = uniform_places(key, self.valid_rows.shape[0], batch_size)
        else:
            places = self.mixture.places(key, batch_size)
        rows = self.valid_rows[places]
        batch = jax.vmap(self.transition, in_axes=(0, None))(rows, task_index)
        if self.images is None or not self.images.settings.augment_probability:
            return batch
        return augmented(
            batch,
            self.images.image,
            self.images.settings.augment_probability,
            key=jax.random.fold_in(key, 1),
        )

    @property
    def largest_rewards(self) -> Float[Array, " tasks"]:
        """The largest magnitude of a reward of each task."""
        return jnp.max(jnp.abs(self.rewards), axis=1)

    def select_tasks(self, tasks: Sequence[int]) -> Dataset:
        """The same data with the rewards and masks of these tasks only, in this order.

        Args:
            tasks: numbers of tasks, each among `self.tasks` and named once.

        Raises:
            InputError: the data do not hold one of them, one is named twice, or none is named.
        """
        if tuple(tasks) == self.tasks:
            return self
        places = places_of(tasks, self.tasks)
        return dataclasses.replace(
            self, rewards=self.rewards[places], masks=self.masks[places], tasks=tuple(tasks)
        )

    @property
    def starts(self) -> np.ndarray:
        """The first row of each episode that can be sampled."""
        ends = np.asarray(self.ends)
        first = np.append(True, ends[:-1])
        sampled = np.zeros(len(ends), bool)
        sampled[np.asarray(self.valid_rows)] = True
        return np.flatnonzero(first & sampled)

    def split(self, share: float, *, seed: int = 0) -> tuple[Dataset, Dataset | None]:
        """Divide into two by whole episodes; both keep all rows and sample only their own.

        Args:
            share: share of the episodes of each source that the second one gets, rounded down.
            seed: decides which.

        Returns:
            The first, and the second or None where nothing is left for it.

        Raises:
            InputError: the share is not in [0, 1).
        """
        if not 0 <= share < 1:
            raise InputError(f"A share {share} of the episodes is not possible: use 0 to below 1.")
        ends = np.asarray(self.ends)
        episode = np.cumsum(ends) - ends
        valid = np.asarray(self.valid_rows)
        if self.mixture is None:
            parts = [valid]
        else:
            parts = np.split(valid, np.asarray(self.mixture.first)[1:])
        random = np.random.default_rng(seed)
        taken = np.zeros(len(valid), bool)
        for part in parts:
            there = np.unique(episode[part])
            chosen = random.permutation(there)[: int(share * len(there))]
            taken |= np.isin(episode[valid], chosen)
        if not taken.any():
            return self, None
        return self._sampling(~taken), self._sampling(taken)

    def _sampling(self, kept: np.ndarray) -> Dataset:
        """The same rows, of which only these places in `valid_rows` are sampled."""
        mixture = self.mixture
        if mixture is not None:
            bounds = np.append(np.asarray(mixture.first), len(kept))
            count = np.array([kept[a:b].sum() for a, b in itertools.pairwise(bounds)])
            if not count.all():
                weights = np.where(count > 0, np.asarray(mixture.weights), 0)
                mixture = dataclasses.replace(mixture, weights=jnp.array(weights / weights.sum()))
            mixture = Mixture(
                weights=mixture.weights,
                first=jnp.array(np.cumsum(count) - count, jnp.int32),
                count=jnp.array(np.maximum(count, 1), jnp.int32),
            )
        return dataclasses.replace(
            self, valid_rows=self.valid_rows[np.flatnonzero(kept)], mixture=mixture
        )

    def statistics(self) -> Statistics:
        """Count and summarise, on the host; the last row of each episode counts only as a row."""
        return summary.statistics(vars(self), self.tasks, action_limit=ACTION_LIMIT)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the data in hexadecimal, see `sorl.data.summary.fingerprint`.

        Units, the weights of a mixture and images count too, where there are any; how images are
        read does not.
        """
        names = ("observations", "actions", "ends", "rewards", "masks")
        arrays = {name: getattr(self, name) for name in names}
        if self.images is not None:
            arrays["images"] = self.images.frames
        more: list[object] = [] if self.units == USUAL else [self.units]
        if self.mixture is not None:
            leaves = (self.mixture.weights, self.mixture.first, self.mixture.count)
            more += [np.asarray(leaf).tolist() for leaf in leaves]
        return summary.fingerprint(self.tasks, arrays, more)
