"""A report on logged data: what is in them, and what looks wrong, one sentence each.

Everything is in the user's units. The sentences are rules of thumb (ours), meant to make people
look; none of them forbids training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sorl.data.episodes import Logged
from sorl.units import Units

BINS = 10
_MANY = 0.01  # shares of rows above this are worth a sentence
_MANY_SEAMS = 0.03  # above this many episodes may be parts of one


@dataclasses.dataclass(frozen=True)
class Range:
    """Four numbers about something that varies."""

    least: float
    mean: float
    largest: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray) -> Range:
        """Of at least one number."""
        exact = values.astype(np.float64)
        return cls(*map(float, (exact.min(), exact.mean(), exact.max(), exact.std())))


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a set of logged episodes consists of.

    Attributes:
        rows: rows as stored, the last one of each episode included.
        episodes: episodes.
        transitions: what can be learnt from.
        terminated: episodes that end by a termination; the others were truncated.
        without_successor: last steps lost because the log does not hold what came after.
        seams: places inside episodes where the log does not go on, and which now end an episode.
        too_short: episodes of which nothing was left.
        both_as_terminations: rows logged as terminations and as truncations, taken as the former.
        both_as_truncations: likewise, taken as the latter.
        lengths: transitions of an episode.
        rewards: rewards of a transition.
        returns: undiscounted sum of the rewards of an episode.
        actions: of every action entry.
        action_low: what becomes -1 of every action entry.
        action_high: what becomes 1.
        action_histograms: for every action entry how many transitions lie in each of ten equal
            parts of its range.
        saturation: for every action entry the share of transitions at its least or largest value.
        observations: of every observation entry.
        occupied: for every observation entry the share of 20 equal parts of its range that hold at
            least one row; little means outliers or clusters.
        effective_dimensions: of the observations, (Σλ)² / Σλ² over the eigenvalues λ of their
            correlations: 1 if all entries move together, their number if none do.
        duplicate_transitions: share of the transitions whose observation and action stand in an
            earlier one too; 0 where there are images, which are not compared.
        suspicious: what looks wrong, a sentence each.
        images: height, width and channels of the images; empty where there are none.
    """

    rows: int
    episodes: int
    transitions: int
    terminated: int
    without_successor: int
    seams: int
    too_short: int
    both_as_terminations: int
    both_as_truncations: int
    lengths: Range
    rewards: Range
    returns: Range
    actions: tuple[Range, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_histograms: tuple[tuple[int, ...], ...]
    saturation: tuple[float, ...]
    observations: tuple[Range, ...]
    occupied: tuple[float, ...]
    effective_dimensions: float
    duplicate_transitions: float
    suspicious: tuple[str, ...]
    images: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        described = dataclasses.asdict(self)
        return described if self.images else {k: v for k, v in described.items() if k != "images"}

    def __str__(self) -> str:
        lines = [
            f"{self.episodes:,} episodes of {self.lengths.least:,.0f} to "
            f"{self.lengths.largest:,.0f} transitions (mean {self.lengths.mean:,.1f}), "
            f"{self.transitions:,} in all; "
            f"{self.terminated:,} terminate, {self.episodes - self.terminated:,} are truncated",
            f"return of an episode {_told(self.returns)}; reward {_told(self.rewards)}",
            f"{len(self.observations)} observation entries ({self.effective_dimensions:.1f} "
            f"effective dimensions), {len(self.actions)} action entries",
        ]
        for place, (found, counts) in enumerate(
            zip(self.actions, self.action_histograms, strict=True)
        ):
            lines.append(
                f"action {place}: {_told(found)}  |{_bars(counts)}|  "
                f"{self.saturation[place]:.1%} at its least or largest value"
            )
        if self.images:
            lines.append(f"images of {'x'.join(map(str, self.images))}, beside these entries")
        if self.duplicate_transitions:
            lines.append(f"duplicates: {self.duplicate_transitions:.1%} of the transitions")
        lines += [f"look at this: {sentence}" for sentence in self.suspicious]
        return "\n".join(lines)


def inspect(logged: Logged, units: Units, *, unused: Sequence[str] = ()) -> Inspection:
    """Look at assembled episodes.

    Args:
        logged: the rows, in the user's units.
        units: what they are mapped by.
        unused: names of arrays of the log that nothing was made of.
    """
    valid = ~logged.ends
    ends = np.flatnonzero(logged.ends)
    starts = np.append(0, ends[:-1] + 1)
    size = logged.actions.shape[1]
    actions, observations = logged.actions[valid], logged.observations
    low = np.asarray(units.action_low or [-1.0] * size)
    high = np.asarray(units.action_high or [1.0] * size)
    bounds = list(zip(low, high, strict=True))
    counted = np.where(valid, logged.rewards, 0).astype(np.float64)
    found = Inspection(
        rows=len(logged.ends),
        episodes=len(ends),
        transitions=int(valid.sum()),
        terminated=int((~logged.masks[np.maximum(ends - 1, 0)]).sum()),
        without_successor=logged.without_successor,
        seams=logged.seams,
        too_short=logged.too_short,
        both_as_terminations=logged.both_as_terminations,
        both_as_truncations=logged.both_as_truncations,
        lengths=Range.of(ends - starts),
        rewards=Range.of(logged.rewards[valid]),
        returns=Range.of(np.add.reduceat(counted, starts)),
        actions=tuple(Range.of(column) for column in actions.T),
        action_low=tuple(map(float, low)),
        action_high=tuple(map(float, high)),
        action_histograms=tuple(
            tuple(map(int, _histogram(column, *bound)))
            for column, bound in zip(actions.T, bounds, strict=True)
        ),
        saturation=tuple(
            float(((column <= column.min()) | (column >= column.max())).mean())
            for column in actions.T
        ),
        observations=tuple(Range.of(column) for column in observations.T),
        occupied=tuple(_occupied(column) for column in observations.T),
        effective_dimensions=_effective_dimensions(observations),
        duplicate_transitions=(
            _duplicates(observations[valid], actions) if logged.images is None else 0.0
        ),
        suspicious=(),
        images=() if logged.images is None else logged.images.shape[1:],
    )
    sentences = tuple(_suspicious(found, actions, units, unused))
    return dataclasses.replace(found, suspicious=sentences)


def _suspicious(
    found: Inspection, actions: np.ndarray, units: Units, unused: Sequence[str]
) -> list[str]:
    sentences = []
    if unused:
        some = ", ".join(unused[:8]) + (", ..." if len(unused) > 8 else "")
        sentences.append(f"these arrays were not used: {some}.")
    if found.without_successor:
        sentences.append(
            f"{found.without_successor:,} episodes lost their last step, because the log does not "
            "hold the observation after it (log next observations, or one row more)."
        )
    if found.seams:
        sentences.append(
            f"episodes were cut at {found.seams:,} places where the next observation or the count "
            "of steps does not go on."
        )
    if found.seams > _MANY_SEAMS * found.transitions:
        sentences.append(
            f"these cuts are {found.seams / found.transitions:.0%} of the transitions: unless "
            "episodes do end there, rows that are held out come from the same episodes as those "
            "that are learnt from, and returns and fitted-Q estimates mean little; log next "
            "observations with all digits of the observations and rows in their order, or leave "
            "out what cuts them (--key next_observations=none steps=none)."
        )
    if found.both_as_terminations:
        sentences.append(
            f"{found.both_as_terminations:,} rows are marked as terminated and as truncated; they "
            "count as terminations, from which nothing is bootstrapped."
        )
    if found.both_as_truncations:
        sentences.append(
            f"{found.both_as_truncations:,} rows are marked as done and as truncated; they count "
            "as truncations, since `done` marks time-outs too in many logs (if not in this one, "
            "name it: --key terminations=NAME)."
        )
    if found.too_short:
        sentences.append(f"{found.too_short:,} episodes had a single row and were left out.")
    if found.episodes < 10:
        sentences.append(f"there are only {found.episodes} episodes.")
    if found.terminated == 0 and found.rewards.deviation > 0:
        sentences.append(
            "no episode terminates, so the value of every last state is learnt as if the task went "
            "on; if some ended for good, name their column (--key terminations=NAME)."
        )
    lengths = found.lengths
    if found.episodes > 1 and found.terminated == found.episodes and lengths.deviation == 0:
        sentences.append(
            f"all episodes terminate after exactly {lengths.mean:.0f} transitions; if that is a "
            "limit of time, it is a truncation (--key truncations=NAME)."
        )
    if found.rewards.deviation == 0:
        sentences.append(
            f"all rewards are {found.rewards.mean:g}, so there is nothing to prefer: only "
            "imitation (bc) makes sense."
        )
    for place, column in enumerate(found.actions):
        if column.least == column.largest:
            sentences.append(f"action entry {place} is always {column.mean:g}.")
            continue
        if found.saturation[place] > 0.2:
            sentences.append(
                f"action entry {place} is at its least or largest value in "
                f"{found.saturation[place]:.0%} of the transitions."
            )
        inner = np.quantile(actions[:, place], [0.001, 0.999])
        if inner[1] - inner[0] < 0.25 * (found.action_high[place] - found.action_low[place]):
            sentences.append(
                f"99.8% of action entry {place} lie within {inner[0]:.3g} to {inner[1]:.3g}, a "
                "small part of its range: give --action-low and --action-high if the rest are "
                "outliers."
            )
    constant = [i for i, column in enumerate(found.observations) if column.least == column.largest]
    if constant:
        sentences.append(f"observation entries that never change: {_places(constant)}.")
    narrow = [i for i, share in enumerate(found.occupied) if share <= 0.1 and i not in constant]
    if narrow:
        sentences.append(
            f"observation entries with outliers, or only a few values: {_places(narrow)}."
        )
    deviations = [column.deviation for column in found.observations if column.deviation > 0]
    if deviations and not units.standardises and max(deviations) > 100 * min(deviations):
        sentences.append(
            f"standard deviations of observation entries range from {min(deviations):.2g} to "
            f"{max(deviations):.2g}: --standardize helps networks."
        )
    if found.duplicate_transitions > _MANY:
        sentences.append(
            f"{found.duplicate_transitions:.0%} of the transitions repeat an earlier observation "
            "and action exactly; is a file there twice?"
        )
    return sentences


def _histogram(column: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.append(len(column), np.zeros(BINS - 1, int))
    return np.histogram(np.clip(column, low, high), BINS, (low, high))[0]


def _occupied(column: np.ndarray) -> float:
    if column.min() == column.max():
        return 1.0
    return float((np.histogram(column.astype(np.float64), 20)[0] > 0).mean())


def _effective_dimensions(observations: np.ndarray) -> float:
    exact = observations[:, observations.min(axis=0) != observations.max(axis=0)].astype(np.float64)
    if not exact.shape[1]:
        return 0.0
    exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    eigenvalues = np.linalg.eigvalsh(exact.T @ exact / len(exact))
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def _duplicates(observations: np.ndarray, actions: np.ndarray) -> float:
    rows = np.ascontiguousarray(np.concatenate([observations, actions], axis=1) + 0.0)
    distinct = len(np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}")))
    return 1 - distinct / len(rows)


def _told(found: Range) -> str:
    return f"{found.least:.4g} to {found.largest:.4g} (mean {found.mean:.4g})"


def _bars(counts: Sequence[int]) -> str:
    most = max(counts) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // most)] for count in counts)


def _places(places: Sequence[int]) -> str:
    return ", ".join(map(str, places[:20])) + (", ..." if len(places) > 20 else "")
