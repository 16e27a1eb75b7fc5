"""Minari's data sets as data here.

Observations are flattened in the order that `sorl.spaces` tells; actions keep the range of their
space, which becomes [-1, 1], and where it has none the range in the data. Terminations and
truncations are taken as they were recorded. Every episode has its last observation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sorl.data.columns import Columns, columns_of
from sorl.data.dataset import Dataset
from sorl.data.episodes import assemble
from sorl.data.minari_names import SCHEME, open_minari
from sorl.data.ranges import learn_units
from sorl.errors import InputError
from sorl.spaces import take_apart


def load_minari(name: str) -> Dataset:
    """Load a data set of Minari, see `sorl.data.minari_names`.

    Raises:
        InputError: it is not there, damaged, or of spaces that cannot be used.
    """
    from gymnasium import spaces

    found = open_minari(name)
    source = f"{SCHEME}{found.id}"
    space = found.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise InputError(
            f"{source}: its actions are {space}, but a policy here gives one flat vector of "
            "numbers: choose a set with continuous actions."
        )
    logged = assemble(_stretches(found, source), rewards="logged", source=source)
    bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    actions = logged.actions
    if bounded:
        # Some ports hold actions beyond the bounds, which their environments clipped.
        actions = np.clip(actions, space.low, space.high).astype(np.float32)
    units = learn_units(
        logged.observations,
        actions,
        action_low=space.low if bounded else None,
        action_high=space.high if bounded else None,
        source=source,
    )
    seen: Any = logged.observations
    if logged.images is not None:
        seen = {"image": logged.images, "state": logged.observations}
    return Dataset.from_arrays(
        seen,
        units.network_actions(actions),
        logged.ends,
        logged.rewards[None],
        logged.masks[None],
        units=units,
        source=source,
    )


def _stretches(found: Any, source: str) -> Iterator[Columns]:
    episodes = iter(found.iterate_episodes())
    number = 0
    while True:
        try:
            episode = next(episodes, None)
        except Exception as error:  # whatever HDF5 or Arrow raise on damaged data
            raise InputError(
                f"{source}: episode {number} is damaged ({type(error).__name__}); download it anew."
            ) from error
        if episode is None:
            return
        where = f"{source}, episode {number}"
        try:
            observations = take_apart(
                found.observation_space, episode.observations, (len(episode.rewards) + 1,)
            ).together()
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        yield columns_of(
            where,
            {
                "observations": observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminations": episode.terminations,
                "truncations": episode.truncations,
            },
            whole=True,
        )
        number += 1
