"""From columns of a log to rows as they are stored: every episode with its last observation.

An episode of T transitions has T + 1 rows (see `sorl.data.dataset`). Logs seldom have the last row:

* where the observation after the last step is known (the next observation, or one row more in a
  whole episode), it becomes the last row;
* where the last step terminates, its observation is repeated: nothing is bootstrapped from it;
* elsewhere the last step has no successor that could be learnt from, and is lost.

Masks are 0 at terminations alone; an episode ends at terminations and at truncations. A row that
is both terminates, unless terminations come from an array that marks every end (old Gym's `done`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sorl.data.columns import Columns
from sorl.errors import InputError

RewardRule = Literal["logged", "success-at-end", "zeros"]
"""Where rewards come from: the log; 1 at the last step of every episode that terminates, else 0;
or 0 everywhere, for imitation.

A log that nowhere knows terminations or truncations holds demonstrations: by `success-at-end` all
of its episodes succeed. Where it knows of one, episodes without them did not terminate.
"""


class Logged(NamedTuple):
    """Rows as they are stored, in the user's units, and what became of the log.

    Attributes:
        observations: float32 `[rows, observation_size]`; where there are images, the state beside
            them.
        actions: float32 `[rows, action_size]`.
        rewards: float32 `[rows]`.
        masks: bool `[rows]`, false at terminations.
        ends: bool `[rows]`, true on the last row of each episode.
        terminated: number of episodes that end by a termination.
        without_successor: last steps that were lost, because nobody knows what came after.
        seams: places inside an episode where the next observation, or the count of steps, does not
            go on; an episode was cut there. Where next observations are logged nothing was lost by
            it, else the transition across the cut, which is among `without_successor` too.
        too_short: episodes left out, because nothing was left of them.
        both_as_terminations: rows logged as terminations and as truncations, taken as the former.
        both_as_truncations: likewise, taken as the latter.
        images: uint8 `[rows, height, width, channels]`, or None.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    ends: np.ndarray
    terminated: int
    without_successor: int
    seams: int
    too_short: int
    both_as_terminations: int
    both_as_truncations: int
    images: np.ndarray | None = None


_COUNTS = (
    "terminated",
    "without_successor",
    "seams",
    "too_short",
    "both_as_terminations",
    "both_as_truncations",
)


def assemble(stretches: Iterable[Columns], *, rewards: RewardRule, source: str) -> Logged:
    """Put stretches of a log one after the other.

    Args:
        stretches: at least one, all of the same sizes.
        rewards: where rewards come from.
        source: file or origin that messages begin with.

    Raises:
        InputError: nothing is there, or nothing that could be learnt from; sizes differ; or there
            are no rewards and no rule for them.
    """
    if rewards not in get_args(RewardRule):
        raise InputError(
            f"There are no rewards {rewards!r}: use {', '.join(get_args(RewardRule))}."
        )
    demonstrations = False
    if rewards == "success-at-end":
        held = deque(stretches)
        demonstrations = all(it.terminations is None and it.truncations is None for it in held)
        stretches = (held.popleft() for _ in range(len(held)))  # so that each is freed when used
    parts, counted = [], False
    for columns in stretches:
        counted |= columns.steps is not None
        if rewards == "logged" and columns.rewards is None:
            raise InputError(
                f"{source}: there are no rewards. Name the column that holds them, or choose "
                "rewards success-at-end (1 at the end of episodes that terminate, else 0) or "
                "zeros (for imitation by bc)."
            )
        parts.append(_rows_of(columns, rewards, demonstrations=demonstrations))
        first = parts[0]
        shapes = [None if it.images is None else it.images.shape[1:] for it in (first, parts[-1])]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{source}: images have shape {shapes[0]} in the beginning and {shapes[1]} in part "
                f"{len(parts)}; all must be alike."
            )
        for what in ("observations", "actions"):
            sizes = [getattr(part, what).shape[1] for part in (first, parts[-1])]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"{source}: {what} have {sizes[0]} entries in the beginning and {sizes[1]} in "
                    f"part {len(parts)}; import sets of different sizes apart."
                )
    if not parts:
        raise InputError(f"{source}: there are no episodes.")
    together: dict[str, Any] = {}
    for name in Logged._fields:
        values = [getattr(part, name) for part in parts]
        if name in _COUNTS:
            together[name] = sum(values)
        elif values[0] is not None:
            together[name] = np.concatenate(values)
    joined = Logged(**together)
    if not len(joined.ends):
        cause = (
            f", cut at {joined.seams:,} places where the steps do not rise by their usual "
            "difference: leave them out if they do not count steps (--key steps=none), or"
        )
        raise InputError(
            f"{source}: no transition is left, since every episode has a single step whose "
            f"successor is not logged{cause if counted and joined.seams else ';'} give the next "
            "observations too."
        )
    return joined


def _rows_of(columns: Columns, rule: RewardRule, *, demonstrations: bool) -> Logged:
    count = len(columns.actions)
    observations = columns.observations[:count]
    terminated, both = np.zeros(count, bool), 0
    if columns.terminations is not None:
        terminated |= columns.terminations
    if columns.truncations is not None:
        both = int((terminated & columns.truncations).sum())
        if columns.done:
            terminated &= ~columns.truncations
    ends, stated = _ends(columns, terminated)
    if demonstrations:
        # A seam is an end only where nothing else tells of episodes.
        terminated |= stated if columns.whole or columns.episodes is not None else ends

    known = ends & terminated
    if columns.next_observations is not None:
        known = ends
    elif len(columns.observations) > count:
        known[-1] = True

    # Every row goes to its place; behind the ends whose successor is known one more is put.
    place = np.arange(count) + np.cumsum(known) - known
    after = place[known] + 1
    total = count + int(known.sum())
    source_row = np.empty(total, np.intp)
    source_row[place], source_row[after] = np.arange(count), np.flatnonzero(known)
    rows = observations[source_row]
    rows[after] = _following(columns.observations, columns.next_observations, count)[known]
    images = columns.images
    if images is not None:
        following = _following(images, columns.next_images, count)[known]
        images = images[source_row]
        images[after] = following
    rewards, masks, last = np.zeros(total, np.float32), np.ones(total, bool), np.zeros(total, bool)
    rewards[place] = _rewards(columns, rule, terminated & ends)
    masks[place] = ~terminated
    last[place[ends & ~known]] = True
    masks[last] = True  # no transition starts there
    last[after] = True

    lengths = np.diff(np.flatnonzero(last), prepend=-1)
    kept = np.repeat(lengths > 1, lengths)
    return Logged(
        rows[kept],
        columns.actions[source_row][kept],
        rewards[kept],
        masks[kept],
        last[kept],
        terminated=int((ends & terminated).sum()),
        without_successor=int((ends & ~known).sum()),
        seams=int((ends & ~stated).sum()),
        too_short=int((lengths == 1).sum()),
        both_as_terminations=0 if columns.done else both,
        both_as_truncations=both if columns.done else 0,
        images=None if images is None else images[kept],
    )


def _following(here: np.ndarray, after: np.ndarray | None, count: int) -> np.ndarray:
    """What comes behind each of `count` rows, as far as it is known; elsewhere the row itself."""
    if after is not None:
        return after
    following = here[:count].copy()
    if len(here) > count:
        following[-1] = here[count]
    return following


def _ends(columns: Columns, terminated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True on the last step of each episode, and on those alone that the log states: no seams."""
    ends = np.zeros(len(terminated), bool)
    ends[-1] = True
    if not columns.whole:
        ends |= terminated
        if columns.truncations is not None:
            ends |= columns.truncations
    if columns.episodes is not None:
        ends[:-1] |= columns.episodes[1:] != columns.episodes[:-1]
    stated = ends.copy()
    if columns.steps is not None:
        # Nanoseconds since 1970 are whole numbers that floats would round.
        whole = columns.steps.dtype.kind in "iub"
        rises = np.diff(columns.steps.astype(np.int64 if whole else np.float64))
        inside = rises[(rises > 0) & ~stated[:-1]]
        ends[:-1] |= rises != inside.min() if inside.size else True
    if columns.next_observations is not None:
        after = columns.observations[1 : len(ends)]
        ends[:-1] |= (columns.next_observations[:-1] != after).any(axis=1)
    if columns.images is not None and columns.next_images is not None:
        after = columns.images[1 : len(ends)]
        ends[:-1] |= (columns.next_images[:-1] != after).any(axis=(1, 2, 3))
    return ends, stated


def _rewards(columns: Columns, rule: RewardRule, succeeded: np.ndarray) -> np.ndarray:
    if rule == "zeros":
        return np.zeros(len(succeeded), np.float32)
    if rule == "success-at-end":
        return succeeded.astype(np.float32)
    assert columns.rewards is not None
    return columns.rewards
