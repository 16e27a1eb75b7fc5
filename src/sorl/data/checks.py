"""What logged arrays must fulfil before anything learns from them, each complaint one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sorl.errors import InputError

ACTION_TOLERANCE = 1e-4
"""An action entry may leave [-1, 1] by this much, for rounding; it is clipped afterwards."""

_ROWS_AT_ONCE = 1 << 16


class LoggedArrays(NamedTuple):
    """Checked and converted arrays of one set.

    Attributes:
        observations: float32, shape `[rows, observation_size]`.
        actions: float32, shape `[rows, action_size]`, not clipped yet.
        ends: bool, shape `[rows]`, true on the last row of each episode.
        rewards: float32, shape `[tasks, rows]`.
        masks: bool, shape `[tasks, rows]`.
        tasks: one number a task.
    """

    observations: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    tasks: tuple[int, ...]


def check_arrays(
    observations: npt.ArrayLike,
    actions: npt.ArrayLike,
    terminals: npt.ArrayLike,
    rewards: npt.ArrayLike,
    masks: npt.ArrayLike,
    tasks: Sequence[int],
    *,
    images: np.ndarray | None = None,
    source: str,
) -> LoggedArrays:
    """Convert the arrays to the types kept on the device, or say what is wrong with them.

    Args:
        observations: floating point, `[rows, observation_size]`, finite.
        actions: floating point, `[rows, action_size]`, finite, in [-1, 1] up to
            `ACTION_TOLERANCE`.
        terminals: `[rows]`, 1 on the last row of each episode, else 0. The very last row must
            be such an end: otherwise the set was probably cut off, and the ends of its episodes
            cannot be trusted. An episode has at least two rows, or it would hold no transition.
        rewards: `[tasks, rows]`, finite.
        masks: `[tasks, rows]`, 0 where the task is solved and nothing is bootstrapped, else 1.
        tasks: different whole numbers, one for each row of `rewards`.
        images: what observations hold besides, `[rows, ...]`; only then may they have no columns.
        source: file or origin that messages begin with.

    Raises:
        InputError: one of these conditions does not hold; the message names the first bad row.
    """
    observed = _convert(source, "observations", observations, dimensions=2, kinds="f")
    acted = _convert(source, "actions", actions, dimensions=2, kinds="f")
    ended = _convert(source, "terminals", terminals, dimensions=1, kinds="fiub")
    rewarded = _convert(source, "rewards", rewards, dimensions=2, kinds="fiub")
    masked = _convert(source, "masks", masks, dimensions=2, kinds="fiub")
    numbers = _check_tasks(source, tasks)

    rows = observed.shape[0]
    if rows == 0:
        raise InputError(f"{source}: the set is empty; observations have no rows.")
    seen = () if images is None else (("images", images, (rows, *images.shape[1:])),)
    for name, array, expected in (
        *seen,
        ("actions", acted, (rows, acted.shape[1])),
        ("terminals", ended, (rows,)),
        ("rewards", rewarded, (len(numbers), rows)),
        ("masks", masked, (len(numbers), rows)),
    ):
        if array.shape != expected:
            raise InputError(
                f"{source}: {name} have shape {array.shape}, but {rows} rows of observations and "
                f"{len(numbers)} task(s) need {expected}."
            )
    for name, array in (("observations", observed), ("actions", acted)):
        if array.shape[1] == 0 and not (seen and name == "observations"):
            raise InputError(f"{source}: {name} have no columns.")

    observed = _to_float32(source, "observations", observed)
    acted = _to_float32(source, "actions", acted)
    _refuse(
        source,
        "actions",
        acted,
        lambda part: np.abs(part) > 1 + ACTION_TOLERANCE,
        "is outside [-1, 1]: scale the actions to that range",
    )
    ends = _check_ends(source, ended)
    numbered = tuple(zip(numbers, rewarded, masked, strict=True))
    for number, reward, mask in numbered:
        _to_float32(source, f"rewards of task {number}", reward)
        _refuse_other_than_0_and_1(source, f"masks of task {number}", mask)
    rewarded = rewarded.astype(np.float32, copy=False)
    return LoggedArrays(observed, acted, ends, rewarded, masked != 0, numbers)


def check_once(sources: Sequence[str]) -> None:
    """Raise `InputError` where two sources are one, if only by different paths."""
    places: dict[str, str] = {}
    for source in sources:
        place = os.path.realpath(os.path.expanduser(source))
        if place in places:
            raise InputError(
                f"Of the data {', '.join(dict.fromkeys([places[place], source]))} one is named "
                "twice: name each once."
            )
        places[place] = source


def check_kind(source: str, name: str, array: np.ndarray, *, kinds: str) -> np.ndarray:
    """Check what the entries are: `kinds` are letters of NumPy's `dtype.kind`.

    Raises:
        InputError: the entries are of another kind.
    """
    if array.dtype.kind not in kinds:
        wanted = {"f": "floating-point numbers", "iub": "whole numbers"}.get(kinds, "numbers")
        raise InputError(f"{source}: {name} are {array.dtype}, but must be {wanted}.")
    return array


def check_finite(source: str, name: str, array: np.ndarray) -> np.ndarray:
    """Check that an array holds neither NaN nor an infinite value.

    Raises:
        InputError: it does; the message names the first bad row.
    """
    _refuse(
        source,
        name,
        array,
        lambda part: ~np.isfinite(part),
        "is not a finite number: remove the episode or mend the log",
    )
    return array


def _convert(
    source: str, name: str, values: npt.ArrayLike, *, dimensions: int, kinds: str
) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{source}: {name} are not one rectangular array of numbers.") from None
    check_kind(source, name, array, kinds=kinds)
    if array.ndim != dimensions:
        raise InputError(
            f"{source}: {name} have shape {array.shape}, but must have {dimensions} dimension(s)."
        )
    return array


def _check_tasks(source: str, tasks: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(tasks)
    if not numbers:
        raise InputError(f"{source}: no task was named; give at least one task number.")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise InputError(f"{source}: task {number!r} is not a whole number from 0 on.")
        if numbers.count(number) > 1:
            raise InputError(f"{source}: task {number} is named twice; name each task once.")
    return tuple(int(number) for number in numbers)


def _to_float32(source: str, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    return check_finite(source, name, converted)


def _refuse_other_than_0_and_1(source: str, name: str, array: np.ndarray) -> None:
    _refuse(source, name, array, lambda part: (part != 0) & (part != 1), "is neither 0 nor 1")


def _check_ends(source: str, terminals: np.ndarray) -> np.ndarray:
    _refuse_other_than_0_and_1(source, "terminals", terminals)
    ends = terminals != 0
    (last_rows,) = np.nonzero(ends)
    if last_rows.size == 0:
        raise InputError(
            f"{source}: terminals mark no episode ends; set them to 1 on the last row of each "
            "episode."
        )
    if not ends[-1]:
        raise InputError(
            f"{source}: the last row ({len(ends) - 1}) is not marked as an episode end in "
            "terminals, so the set looks cut off; mark it, or drop the rows of that episode."
        )
    lengths = np.diff(last_rows, prepend=-1)
    if lengths.min() < 2:
        episode = int(np.argmax(lengths < 2))
        raise InputError(
            f"{source}: the episode that ends at row {last_rows[episode]} has a single row and "
            "so no transition; terminals belong on the last row of each episode only."
        )
    return ends


def _refuse(
    source: str,
    name: str,
    array: np.ndarray,
    is_bad: Callable[[np.ndarray], Any],
    complaint: str,
) -> None:
    """Raise, naming the first bad row; part by part, so that no second copy is ever held."""
    for start in range(0, len(array), _ROWS_AT_ONCE):
        part = array[start : start + _ROWS_AT_ONCE]
        bad = is_bad(part)
        if bad.any():
            row, *columns = (int(index) for index in np.argwhere(bad)[0])
            column = f", column {columns[0]}" if columns else ""
            value = part[(row, *columns)]
            raise InputError(f"{source}: {name}, row {start + row}{column}: {value!s} {complaint}.")
