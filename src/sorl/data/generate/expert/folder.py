"""Where an expert is kept, while it is trained and after.

    experts/online-ant-xy-v0-1f2e3d4c/
        expert.json          what it is: environment, steps, seed, recipe, versions
        actor.safetensors    the policy so far; its own metadata tell after how many steps
        returns.csv          a row every few thousand steps
        training/            checkpoint and replay buffer, until the training is over

The digits are a digest of what the expert is, so another seed, recipe or version has another
folder, and the same one is found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sorl import files, leaves, tables
from sorl.data.generate.expert.actor import Origin, read_expert, write_actor
from sorl.data.generate.expert.replay import Replay
from sorl.data.generate.expert.sac import SAC, SACState
from sorl.data.generate.protocols import ExpertProtocol
from sorl.errors import InputError


@dataclass(frozen=True)
class Position:
    """How far a training has come."""

    steps: int = 0
    """Steps of the environment."""
    episodes: int = 0
    """Episodes that have ended."""
    seconds: float = 0.0
    """Wall-clock time of the training, of all tries together."""


@dataclass(frozen=True)
class ExpertFolder:
    """One expert's folder; it need not exist.

    Args:
        path: where it is.
        settings: what the expert is, as JSON holds it.
        origin: the same in short, with all its steps.
    """

    path: Path
    settings: Mapping[str, Any]
    origin: Origin

    @property
    def actor(self) -> Path:
        """The file of the policy."""
        return self.path / "actor.safetensors"

    @property
    def returns(self) -> Path:
        """The table of returns."""
        return self.path / "returns.csv"

    @property
    def training(self) -> Path:
        """The folder of what only going on needs."""
        return self.path / "training"

    def is_finished(self) -> bool:
        """Whether the expert is trained to its last step."""
        return self.actor.exists() and read_expert(self.actor).origin == self.origin

    def create(self) -> None:
        """Make the folder, and say in it what it holds."""
        with files.explained("make the folder", self.training):
            self.training.mkdir(parents=True, exist_ok=True)
        if not (self.path / "expert.json").exists():
            libraries = {name: version(name) for name in ("sorl", "jax", "jaxlib", "numpy")}
            files.write_json(self.path / "expert.json", {**self.settings, "made_with": libraries})

    def save(self, state: SACState, replay: Replay, position: Position) -> None:
        """Write a checkpoint; a kill at any moment leaves this one or the one before."""
        import safetensors.numpy

        replay.save(self.training)
        arrays = {name: leaves.to_host(leaf) for name, leaf in leaves.named(state).items()}
        metadata = {"position": json.dumps(asdict(position))}
        files.write_bytes(self._checkpoint, safetensors.numpy.save(arrays, metadata))
        replay.remove_forgotten(self.training)
        self.save_actor(state, position.steps)

    def save_actor(self, state: SACState, steps: int) -> None:
        """Write the policy after `steps` steps."""
        arrays: dict[str, np.ndarray] = {
            name: leaves.to_host(leaf) for name, leaf in leaves.named(state.actor).items()
        }
        origin = Origin(self.origin.environment, steps, self.origin.seed)
        write_actor(self.actor, arrays, origin)

    def load(self, like: SACState, replay: Replay) -> tuple[SACState, Position]:
        """The state of the last checkpoint, its steps in `replay`; a fresh start if there is none.

        Raises:
            InputError: the checkpoint is damaged.
        """
        import safetensors
        import safetensors.numpy

        files.remove_leftovers(self.training)
        if not self._checkpoint.exists():
            replay.load(self.training, 0)
            self._rewind_returns(0)
            return like, Position()
        try:
            values = safetensors.numpy.load(self._checkpoint.read_bytes())
            with safetensors.safe_open(self._checkpoint, "numpy") as file:
                position = Position(**json.loads((file.metadata() or {})["position"]))
            found = leaves.differences({n: leaves.describe(v) for n, v in values.items()}, like)
            if found:
                raise ValueError(found[0])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._checkpoint} is damaged ({error}): remove {self.training} to train the "
                "expert anew."
            ) from error
        replay.load(self.training, position.steps)
        self._rewind_returns(position.steps)
        return leaves.fill(like, values), position

    def _rewind_returns(self, steps: int) -> None:
        rows = tables.read_rows(self.returns)
        tables.write_rows(self.returns, [row for row in rows if float(row["steps"]) <= steps])

    @property
    def _checkpoint(self) -> Path:
        return self.training / "checkpoint.safetensors"


def find_folder(
    root: Path, protocol: ExpertProtocol, *, steps: int, seed: int, recipe: SAC
) -> ExpertFolder:
    """The folder, below `root`, of the expert that is all this."""
    settings: dict[str, Any] = {
        "environment": protocol.environment,
        "resample_interval": protocol.resample_interval,
        "steps": steps,
        "seed": seed,
        "recipe": asdict(recipe),
        "ogbench": version("ogbench"),
        "mujoco": version("mujoco"),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    origin = Origin(protocol.environment, steps, seed)
    return ExpertFolder(root / f"{protocol.environment}-{digest}", settings, origin)
