"""Every random draw of an episode follows from (seed, split, episode, attempt) and nothing else."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

import numpy as np

Split: TypeAlias = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")


def seed_episode(seed: int, split: Split, episode: int, attempt: int) -> int:
    """Seed Python's and NumPy's global generators for one attempt at one episode.

    Returns another number of the same stream, in [0, 2**32), for `environment.reset(seed=...)`.
    The oracles of ogbench draw from NumPy's global generator, hence the global state: call this
    in a process of its own.
    """
    sequence = np.random.SeedSequence([seed, SPLITS.index(split), episode, attempt])
    numpy_seed, python_seed, environment_seed = (int(word) for word in sequence.generate_state(3))
    np.random.seed(numpy_seed)  # noqa: NPY002
    random.seed(python_seed)
    return environment_seed
