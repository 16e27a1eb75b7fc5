"""HDF5 by h5py, in two layouts.

    flat          one array a name, one row a step, as in D4RL: observations, actions, rewards,
                  terminals, timeouts
    by episode    one group an episode, as in robomimic (data/demo_0, data/demo_1, ...) or
                  episode_0, episode_1, ...: obs/..., actions, rewards, dones

Names inside groups are joined by slashes, from the episode's group on: `obs/object`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sorl.data.importing.log import Log, damaged_if_it_raises
from sorl.errors import InputError

_EPISODE = re.compile(r"((?:data/)?(?:demo|episode|traj|trajectory)_([0-9]+))/(.+)")


@dataclasses.dataclass(frozen=True)
class Hdf5Log(Log):
    """A file of groups and arrays.

    Attributes:
        groups: the groups of the episodes in the order of their numbers; one empty name if flat.
    """

    groups: tuple[str, ...] = ("",)

    def stretches(self, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """All rows of a flat file, or one episode after the other."""
        h5py = _h5py()
        with damaged_if_it_raises(self.path), h5py.File(self.path, "r") as file:
            for group in self.groups:
                arrays = {}
                for name in wanted:
                    place = f"{group}/{name}" if group else name
                    found = file.get(place)
                    if not isinstance(found, h5py.Dataset):
                        raise InputError(
                            f"{self.path}: {place} is missing, which other episodes have: add it, "
                            "or leave out the role of these arrays (--key ROLE=none)."
                        )
                    with damaged_if_it_raises(self.path, place):
                        arrays[name] = np.asarray(found[()])
                yield arrays


def open_log(path: Path) -> Hdf5Log:
    """Open a file and find its layout.

    Raises:
        InputError: h5py is not installed, or the file cannot be read.
    """
    h5py = _h5py()
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and found.dtype.kind in "fiub" and found.ndim:
            shapes[name] = found.shape

    with damaged_if_it_raises(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    episodes: dict[tuple[int, str], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _EPISODE.fullmatch(name)
        if match:
            episodes.setdefault((int(match[2]), match[1]), {})[match[3]] = shape[1:]
    if not episodes:
        return Hdf5Log(path, {name: shape[1:] for name, shape in shapes.items()})
    ordered = sorted(episodes)
    # Also those that only some episodes have, so that none passes for one that nobody logged.
    every = {name: shape for keys in episodes.values() for name, shape in keys.items()}
    return Hdf5Log(
        path,
        dict(sorted(every.items())),
        whole=True,
        groups=tuple(group for _, group in ordered),
    )


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"HDF5 files need a package that is not installed ({error}): pip install 'sorl[hdf5]'."
        ) from error
    return h5py
