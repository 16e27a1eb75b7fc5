"""Columns of a log: arrays by what they mean, converted and checked where they enter.

observations        s, [rows, ...], or one row more in a whole episode: its last observation
actions             a, [rows, ...]
rewards             r of (s, a), [rows]
terminations        the task is over, nothing comes after: not bootstrapped, [rows]
truncations         the log stops here, the task went on, [rows]
next_observations   s', [rows, ...]
episodes            a label that changes where an episode ends, [rows]
steps               a count within the episode that rises by the same whole number, [rows]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sorl.data.checks import check_finite
from sorl.data.images import take_apart
from sorl.errors import InputError

ROLES = (
    "observations",
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "next_observations",
    "episodes",
    "steps",
)
NEEDED = ("observations", "actions")
IMAGES = {"observations": "images", "next_observations": "next_images"}
"""Where the images of a role are kept."""


class Columns(NamedTuple):
    """One stretch of a log; None where a column is not logged.

    Attributes:
        observations: float32 `[rows, size]`, one row more where the last observation is known;
            where there are images, the state beside them, which may have no entries.
        actions: float32 `[rows, size]`, in the user's units.
        rewards: float32 `[rows]`.
        terminations: bool `[rows]`.
        truncations: bool `[rows]`.
        next_observations: float32 `[rows, size]`.
        episodes: `[rows]`, whatever can be compared.
        steps: `[rows]`, whole numbers.
        images: uint8 `[rows, height, width, channels]`, as many rows as observations.
        next_images: likewise of next_observations.
        whole: whether the stretch is exactly one episode; then it ends at its last row alone.
        done: whether terminations mark every end, as old Gym's `done`: what is a truncation too is
            that alone.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None = None
    terminations: np.ndarray | None = None
    truncations: np.ndarray | None = None
    next_observations: np.ndarray | None = None
    episodes: np.ndarray | None = None
    steps: np.ndarray | None = None
    images: np.ndarray | None = None
    next_images: np.ndarray | None = None
    whole: bool = False
    done: bool = False


def columns_of(source: str, arrays: Mapping[str, Any], *, whole: bool = False) -> Columns:
    """Convert and check arrays by their role.

    Args:
        source: file or origin that messages begin with.
        arrays: by role; `terminations` and `truncations` of a whole episode may be one truth value
            about its last step.
        whole: whether this is exactly one episode.

    Raises:
        InputError: an unknown role, a missing one, arrays of other types or lengths, a number
            that is not finite.
    """
    for role in arrays:
        if role not in ROLES:
            raise InputError(f"{source}: there is no role {role!r}: use {', '.join(ROLES)}.")
    for role in NEEDED:
        if role not in arrays:
            raise InputError(f"{source}: {role} are missing; there are {', '.join(arrays)}.")
    actions = matrix(source, "actions", arrays["actions"])
    rows = len(actions)
    if rows == 0:
        raise InputError(f"{source}: there are no rows.")
    found: dict[str, Any] = {"actions": actions}
    for role in ("observations", "next_observations"):
        if role in arrays:
            frames, state = take_apart(source, role, arrays[role])
            if frames is not None:
                found[IMAGES[role]] = frames
                if state is None:
                    state = np.zeros((len(frames), 0), np.float32)
            found[role] = matrix(source, role, state)
    if "rewards" in arrays:
        found["rewards"] = _vector(source, "rewards", arrays["rewards"])
    for role in ("terminations", "truncations"):
        if role in arrays:
            found[role] = _flags(source, role, arrays[role], rows if whole else None)
    for role in ("episodes", "steps"):
        if role in arrays:
            found[role] = _labels(source, role, arrays[role])
    for role, array in found.items():
        longer = whole and role in ("observations", "images") and len(array) == rows + 1
        if len(array) != rows and not longer:
            raise InputError(
                f"{source}: there are {len(array)} rows of {role} and {rows} of actions."
            )
    if len(found.get("images", found["observations"])) != len(found["observations"]):
        raise InputError(
            f"{source}: there are {len(found['images'])} images and "
            f"{len(found['observations'])} states."
        )
    shapes = [found[role].shape[1:] if role in found else None for role in IMAGES.values()]
    if "next_observations" in found and shapes[0] != shapes[1]:
        raise InputError(
            f"{source}: images of next_observations have shape {shapes[1]} and those of "
            f"observations {shapes[0]}."
        )
    following = found.get("next_observations")
    if following is not None and following.shape[1:] != found["observations"].shape[1:]:
        raise InputError(
            f"{source}: next_observations have {following.shape[1]} entries and observations "
            f"{found['observations'].shape[1]}."
        )
    return Columns(**found, whole=whole)


def matrix(source: str, name: str, values: Any) -> np.ndarray:
    """Numbers as float32 `[rows, size]`; further axes are flattened.

    Raises:
        InputError: no numbers, no rows, images, or a number that is not finite in float32.
    """
    array = _array(source, name, values)
    if array.ndim == 0:
        raise InputError(f"{source}: {name} are one number, but must have rows.")
    if array.dtype == np.uint8 and array.ndim > 2:
        raise InputError(
            f"{source}: {name} are {array.dtype} of shape {array.shape}, which looks like images; "
            "they can be observations alone, so leave them out of the key mapping."
        )
    with np.errstate(over="ignore"):
        converted = _rows(array).astype(np.float32)
    return check_finite(source, name, converted)


def _vector(source: str, name: str, values: Any) -> np.ndarray:
    return _one_column(source, name, matrix(source, name, values))


def _flags(source: str, name: str, values: Any, rows: int | None) -> np.ndarray:
    array = _array(source, name, values)
    if array.ndim == 0 and rows is not None:
        array = np.append(np.zeros(rows - 1, array.dtype), array)
    flags = _one_column(source, name, _rows(array))
    (bad,) = np.nonzero((flags != 0) & (flags != 1))
    if bad.size:
        raise InputError(f"{source}: {name}, row {bad[0]}: {flags[bad[0]]} is neither 0 nor 1.")
    return flags != 0


def _labels(source: str, name: str, values: Any) -> np.ndarray:
    labels = _one_column(source, name, matrix_of_any(source, name, values))
    if labels.dtype.kind == "f":
        exact = 2.0 ** (np.finfo(labels.dtype).nmant + 1)
        if (np.abs(labels) > exact).any():
            raise InputError(
                f"{source}: {name} are {labels.dtype} above {exact:.0f}, where whole numbers that "
                "differ may have become the same: log them as integers, or number from 0."
            )
    return labels


def matrix_of_any(source: str, name: str, values: Any) -> np.ndarray:
    """Numbers in their own type, `[rows, size]`.

    Raises:
        InputError: no numbers, or one that is not finite.
    """
    array = _array(source, name, values)
    return check_finite(source, name, _rows(array))


def _rows(array: np.ndarray) -> np.ndarray:
    """The array as `[rows, size]`; one number is one row."""
    rows, *size = array.shape or (1,)
    # The size is spelled out, for without rows NumPy cannot infer it.
    return array.reshape(rows, math.prod(size))


def _one_column(source: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.shape[1:] != (1,):
        raise InputError(
            f"{source}: {name} have {array.shape[1]} entries a row, but must have one."
        )
    return array[:, 0]


def _array(source: str, name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        raise InputError(f"{source}: {name} are not one rectangular array of numbers.") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{source}: {name} are {array.dtype}, but must be numbers.")
    return array
