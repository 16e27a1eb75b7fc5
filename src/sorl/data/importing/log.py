"""What every format gives: names of arrays, and the arrays of one stretch of rows at a time."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sorl.errors import InputError


@dataclasses.dataclass(frozen=True)
class Log(abc.ABC):
    """One file of a log.

    Attributes:
        path: the file.
        keys: for every array of numbers its shape behind the rows; None where only reading tells.
        whole: whether every stretch is one episode.
    """

    path: Path
    keys: Mapping[str, tuple[int, ...] | None]
    whole: bool = False

    @abc.abstractmethod
    def stretches(self, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """The arrays of these names, stretch by stretch.

        Raises:
            InputError: one is damaged or missing in a stretch.
        """


@contextlib.contextmanager
def damaged_if_it_raises(path: Path, what: str = "the file") -> Iterator[None]:
    """Whatever the block raises means that `path` is damaged: libraries raise dozens of kinds."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read this file.") from None
    except MemoryError:
        raise InputError(
            f"{path}: {what} needs more memory than there is, or the file is damaged."
        ) from None
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0].rstrip(".")[:120] if lines else type(error).__name__
        raise InputError(f"{path}: {what} is damaged or truncated ({reason}).") from None
