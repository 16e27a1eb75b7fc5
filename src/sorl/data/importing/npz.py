"""NumPy's `.npz`: flat arrays with one row a step, named as D4RL names them or otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sorl.data.archive import ArchiveReader
from sorl.data.importing.log import Log
from sorl.data.origin import ARRAY
from sorl.errors import InputError


@dataclasses.dataclass(frozen=True)
class NpzLog(Log):
    """A file of arrays; never a pickle, every checksum verified."""

    def stretches(self, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """One stretch: all rows."""
        reader = ArchiveReader(self.path)
        yield {name: reader.read(name) for name in wanted}


def open_log(path: Path) -> NpzLog:
    """Open a file.

    Raises:
        InputError: it is no readable archive, or is in the format of sorl already.
    """
    reader = ArchiveReader(path)
    names = set(reader.names)
    laid_out = {"observations", "actions", "terminals", "masks"} <= names
    if ARRAY in names or (laid_out and "next_observations" not in names):
        raise InputError(
            f"{path}: is a data set of sorl already, as its masks tell: give it to `sorl train` as "
            "--data."
        )
    return NpzLog(path, dict.fromkeys(reader.names))
