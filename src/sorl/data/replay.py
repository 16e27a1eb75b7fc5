"""Rows that members make by acting, each in room of its own, and batches of these and logged rows.

A row is one transition with its next observation: where an episode is cut off, the last one is
real and not the start of the next episode. Rows stand in the order of acting, round after round,
in each round one of every environment of the member. Room for all rows is made at the beginning,
so that a compiled program never changes its shape; how many there are is a number it is given.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sorl.data.dataset import Dataset
from sorl.types import Spec, Transition

Either = Array | np.ndarray


class Rows(NamedTuple):
    """What one round of acting gave, in the units of networks.

    Attributes:
        observation: s.
        action: a, clipped as those of a data set.
        reward: r(s, a).
        mask: False where the step ended the task, so that nothing is bootstrapped.
        next_observation: s'.
        end: True on the last step of an episode, whether it ended or was cut off.
    """

    observation: Float[Either, "members environments observation_size"]
    action: Float[Either, "members environments action_size"]
    reward: Float[Either, "members environments"]
    mask: Bool[Either, "members environments"]
    next_observation: Float[Either, "members environments observation_size"]
    end: Bool[Either, "members environments"]


class Replay(eqx.Module):
    """The rows of all members, or, inside a map over members, those of one.

    The columns are those of `Rows`, with an axis of rows in place of environments.

    Attributes:
        observations: s.
        actions: a.
        rewards: r(s, a).
        masks: False where the task was over.
        next_observations: s'.
        ends: True on the last step of an episode.
        environments: rows of one round.
    """

    observations: Float[Array, "*members capacity observation_size"]
    actions: Float[Array, "*members capacity action_size"]
    rewards: Float[Array, "*members capacity"]
    masks: Bool[Array, "*members capacity"]
    next_observations: Float[Array, "*members capacity observation_size"]
    ends: Bool[Array, "*members capacity"]
    environments: int = eqx.field(static=True)

    @classmethod
    def empty(cls, spec: Spec, *, members: int, capacity: int, environments: int) -> Replay:
        """Room for `capacity` rows of every member, a multiple of `environments`."""
        room = (members, capacity)
        return cls(
            observations=jnp.zeros((*room, spec.observation_size)),
            actions=jnp.zeros((*room, spec.action_size)),
            rewards=jnp.zeros(room),
            masks=jnp.zeros(room, bool),
            next_observations=jnp.zeros((*room, spec.observation_size)),
            ends=jnp.zeros(room, bool),
            environments=environments,
        )

    @staticmethod
    def bytes_of(spec: Spec, *, members: int, capacity: int) -> int:
        """What room for so many rows takes."""
        numbers = 2 * spec.observation_size + spec.action_size + 1
        return members * capacity * (4 * numbers + 2)

    def insert(self, rows: Rows, size: Int[Array, ""]) -> Replay:
        """The replay with one more round behind the `size` rows that every member has."""
        columns = (
            self.observations,
            self.actions,
            self.rewards,
            self.masks,
            self.next_observations,
            self.ends,
        )
        return Replay(
            *(
                jax.lax.dynamic_update_slice_in_dim(column, new, size, axis=1)
                for column, new in zip(columns, rows, strict=True)
            ),
            environments=self.environments,
        )

    def cut(self, member: int, environment: int, size: int) -> Replay:
        """The replay with the newest row of one environment as the last of its episode."""
        row = size - self.environments + environment
        return eqx.tree_at(lambda it: it.ends, self, self.ends.at[member, row].set(True))

    def transition(self, row: Int[Array, ""], size: Int[Array, ""]) -> Transition:
        """One transition of ONE member that has `size` rows; callers vmap.

        The next action is known where the episode went on and the round after it is there.
        """
        after = row + self.environments
        known = (after < size) & ~self.ends[row]
        return Transition(
            observation=self.observations[row],
            action=self.actions[row],
            reward=self.rewards[row],
            mask=self.masks[row].astype(jnp.float32),
            next_observation=self.next_observations[row],
            next_action=self.actions[jnp.where(known, after, row)],
            next_action_mask=known.astype(jnp.float32),
        )


def sample_both(
    dataset: Dataset,
    replay: Replay,
    key: PRNGKeyArray,
    *,
    task_index: Int[Array, ""] | int,
    size: Int[Array, ""],
    batch_size: int,
    offline_share: float | None,
) -> Transition:
    """A batch for ONE member, drawn with replacement from the data and from its own rows.

    Args:
        dataset: the data. Of a mixture, its logged rows are drawn by its weights.
        replay: the rows of this member.
        key: random key of this draw.
        task_index: position of the member's task in the data.
        size: how many rows it has, at least 1.
        batch_size: number of transitions.
        offline_share: None draws uniformly from all rows, logged and own; a number is the
            probability of every row of the batch to be a logged one, independently. An exact share
            would stand in order, and losses such as SORL's self-consistency treat the rows of a
            batch by their place.

    Returns:
        The transitions, with a leading axis of `batch_size`.
    """
    source_key, logged_key, own_key = jax.random.split(key, 3)
    logged = dataset.valid_rows.shape[0]
    if offline_share is None:
        # In whole numbers: a float32 draws the first few of a million rows too often.
        place = jax.random.randint(source_key, (batch_size,), 0, logged + size)
        own, row = place >= logged, jnp.maximum(place - logged, 0)
    else:
        own = jax.random.uniform(source_key, (batch_size,)) >= offline_share
        row = jax.random.randint(own_key, (batch_size,), 0, size)
    from_data = dataset.sample(logged_key, task_index, batch_size)
    from_replay = jax.vmap(replay.transition, in_axes=(0, None))(row, size)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(own.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, from_replay, from_data)
