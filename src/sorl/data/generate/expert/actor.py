"""A trained expert as a file, run in plain NumPy: worker processes never load JAX."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sorl import files
from sorl.errors import InputError

_LAYER = "mlp.layers[{}].{}"


@dataclass(frozen=True)
class Origin:
    """Where an expert comes from; stands in its file."""

    environment: str
    """Environment it was trained in, such as `online-ant-xy-v0`."""
    steps: int
    """Steps of the environment it was trained for."""
    seed: int
    """Seed of its training."""


class Actor:
    """The expert's mean action: tanh of the mean of its Gaussian.

    Args:
        arrays: weights and biases under the names of `SquashedGaussian`.

    Raises:
        KeyError: a layer is missing.
        ValueError: the layers do not fit each other.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        count = sum(name.endswith(".weight") for name in arrays)
        self._layers = [
            (arrays[_LAYER.format(i, "weight")], arrays[_LAYER.format(i, "bias")])
            for i in range(count)
        ]
        sizes = [weight.shape for weight, _ in self._layers]
        if not sizes or any(a[1] != b[0] for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"layers of shapes {sizes}")
        self.observation_size = sizes[0][0]
        """Entries of what it reads."""
        self.action_size = sizes[-1][1] // 2
        """Entries of its action."""

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The action in (-1, 1), float32, for one observation."""
        x = observation.astype(np.float32)
        for weight, bias in self._layers[:-1]:
            x = _gelu(x @ weight + bias)
        weight, bias = self._layers[-1]
        return np.tanh((x @ weight + bias)[: self.action_size])


class Expert(NamedTuple):
    """What an expert's file holds."""

    actor: Actor
    origin: Origin
    digest: str
    """SHA-256 of the file: data that the expert collects depend on every byte."""


def write_actor(path: Path, arrays: Mapping[str, np.ndarray], origin: Origin) -> None:
    """Write an expert's file, in one step.

    Raises:
        InputError: it cannot be written.
    """
    import safetensors.numpy

    metadata = {"origin": json.dumps(asdict(origin))}
    files.write_bytes(path, safetensors.numpy.save(dict(arrays), metadata))


def read_expert(path: Path) -> Expert:
    """Read an expert's file, or the one in its folder.

    Raises:
        InputError: it is missing, damaged, or none of `write_actor`.
    """
    import safetensors
    import safetensors.numpy

    if path.is_dir():
        path = path / "actor.safetensors"
    with files.explained("read", path):
        content = path.read_bytes()
    try:
        actor = Actor(safetensors.numpy.load(content))
        # Eight bytes with the length of a header, the header, the arrays.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        origin = Origin(**json.loads(header["__metadata__"]["origin"]))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not the file of an expert ({error}): give the actor.safetensors that "
            "`sorl generate` left under experts/."
        ) from error
    return Expert(actor, origin, hashlib.sha256(content).hexdigest())


def _gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of `sorl.nn.MLP`."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
