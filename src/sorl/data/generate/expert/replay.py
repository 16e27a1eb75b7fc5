"""The replay buffer: the newest steps in memory, and on the disk as files that are written once."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sorl import files
from sorl.data.generate.expert.sac import Experience
from sorl.errors import InputError
from sorl.types import Spec

_FILE = re.compile(r"replay-(\d{9})-(\d{9})\.safetensors")


class Replay:
    """The newest `capacity` steps.

    Args:
        spec: sizes of observations and actions.
        capacity: steps that are remembered.
    """

    def __init__(self, spec: Spec, capacity: int) -> None:
        self.added = 0
        """Steps added so far, forgotten ones included."""
        self._saved = 0
        self._capacity = capacity
        self._rows = {
            "observation": np.zeros((capacity, spec.observation_size), np.float32),
            "action": np.zeros((capacity, spec.action_size), np.float32),
            "reward": np.zeros(capacity, np.float32),
            "mask": np.zeros(capacity, np.float32),
            "next_observation": np.zeros((capacity, spec.observation_size), np.float32),
        }

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        mask: float,
        next_observation: np.ndarray,
    ) -> None:
        """Remember one step, as `Experience` has it; the oldest is forgotten by a full buffer."""
        step = (observation, action, reward, mask, next_observation)
        for rows, value in zip(self._rows.values(), step, strict=True):
            rows[self.added % self._capacity] = value
        self.added += 1

    def sample(self, generator: np.random.Generator, rows: int) -> Experience:
        """Draw rows uniformly, with replacement, from at least one step."""
        places = generator.integers(min(self.added, self._capacity), size=rows)
        return Experience(*(jnp.asarray(rows[places]) for rows in self._rows.values()))

    def save(self, folder: Path) -> None:
        """Write what was added since the last save, no more than the capacity, as one new file."""
        import safetensors.numpy

        first = max(self._saved, self.added - self._capacity)
        if first < self.added:
            places = np.arange(first, self.added) % self._capacity
            content = {key: rows[places] for key, rows in self._rows.items()}
            path = folder / f"replay-{first:09d}-{self.added:09d}.safetensors"
            files.write_bytes(path, safetensors.numpy.save(content))
        self._saved = self.added

    def remove_forgotten(self, folder: Path) -> None:
        """Remove the files whose steps are all forgotten."""
        for path, _, end in _saved_files(folder):
            if end <= self.added - self._capacity:
                path.unlink()

    def load(self, folder: Path, added: int) -> None:
        """Fill this empty buffer with what `save` wrote when it had seen `added` steps.

        Files of later steps, of which no checkpoint knows, are removed.

        Raises:
            InputError: a file is missing or damaged.
        """
        import safetensors
        import safetensors.numpy

        reached = max(0, added - self._capacity)
        for path, first, end in _saved_files(folder):
            if end > added:
                path.unlink()
                continue
            if end <= reached or first > reached:
                continue
            try:
                content = safetensors.numpy.load(path.read_bytes())
                places = np.arange(first, end) % self._capacity
                for key, rows in self._rows.items():
                    rows[places] = content[key]
            except (safetensors.SafetensorError, KeyError, ValueError) as error:
                raise InputError(
                    f"{path} is damaged ({error}): remove {folder} to train the expert anew."
                ) from error
            reached = end
        if reached != added:
            raise InputError(
                f"{folder} lacks the steps from {reached:,} on: remove it to train the expert anew."
            )
        self.added = self._saved = added


def _saved_files(folder: Path) -> list[tuple[Path, int, int]]:
    matches = [(path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, int(match[1]), int(match[2])) for path, match in matches if match]
