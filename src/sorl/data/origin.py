"""What an imported `.npz` says of itself, in the array `sorl`: units, sources, key mapping.

It is JSON in UTF-8, as bytes, so that the file needs no other beside it and no pickle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sorl.data.archive import ArchiveReader
from sorl.errors import InputError
from sorl.units import USUAL, Units

ARRAY = "sorl"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where imported data come from.

    Attributes:
        units: what observations and actions are for the user. The file holds observations in the
            user's units and actions in [-1, 1].
        rewards: the rule of `sorl.data.episodes` that rewards came by.
        keys: for each role the arrays that it was made of.
        sources: name and size in bytes of every file.
    """

    units: Units = USUAL
    rewards: str = "logged"
    keys: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    sources: tuple[Mapping[str, Any], ...] = ()


def encode(origin: Origin) -> np.ndarray:
    """The array `sorl`."""
    content = {
        "format": FORMAT,
        "units": origin.units.describe(),
        "rewards": origin.rewards,
        "keys": dict(origin.keys),
        "sources": [dict(source) for source in origin.sources],
    }
    return np.frombuffer(json.dumps(content, indent=1).encode(), np.uint8)


def read_origin(reader: ArchiveReader) -> Origin:
    """What the file says of itself; of a file that says nothing that it is in the usual units.

    Raises:
        InputError: what it says is damaged or of a later version.
    """
    if ARRAY not in reader.names:
        return Origin()
    try:
        content = json.loads(reader.read(ARRAY).astype(np.uint8, casting="no").tobytes().decode())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} is not known")
        return Origin(
            units=Units.parse(content["units"]),
            rewards=str(content["rewards"]),
            keys={role: list(map(str, names)) for role, names in content["keys"].items()},
            sources=tuple(dict(source) for source in content["sources"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{reader.path}: its array {ARRAY}, which tells the units, cannot be read ({error}): "
            "import the data anew."
        ) from error
