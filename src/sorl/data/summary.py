"""What a data set consists of: its statistics, and the fingerprint that tells it from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TaskStatistics:
    """Rewards of one task over all transitions.

    Args:
        task: number of the task.
        reward_min: smallest reward.
        reward_mean: mean reward.
        reward_max: largest reward.
        success_rows: transitions whose mask is 0, that is whose observation solves the task.
    """

    task: int
    reward_min: float
    reward_mean: float
    reward_max: float
    success_rows: int


@dataclass(frozen=True)
class Statistics:
    """What a data set consists of.

    Args:
        rows: rows, including the last one of each episode.
        episodes: episodes.
        transitions: rows that have a successor in their episode: `rows - episodes`.
        episode_length_min: transitions of the shortest episode.
        episode_length_mean: transitions of an episode on average.
        episode_length_max: transitions of the longest episode.
        action_saturation: share in [0, 1] of action entries at the limit, over all transitions.
        tasks: rewards, one entry a task.
    """

    rows: int
    episodes: int
    transitions: int
    episode_length_min: int
    episode_length_mean: float
    episode_length_max: int
    action_saturation: float
    tasks: tuple[TaskStatistics, ...]


def statistics(
    arrays: Mapping[str, Any], tasks: Sequence[int], *, action_limit: float
) -> Statistics:
    """Count and summarise; the last row of each episode counts only as a row.

    Args:
        arrays: `actions`, `ends`, `valid_rows`, `rewards` and `masks` as `Dataset` has them.
        tasks: number of each task.
        action_limit: magnitude to which actions are clipped.
    """
    actions, ends, valid, rewards, masks = (
        np.asarray(arrays[name]) for name in ("actions", "ends", "valid_rows", "rewards", "masks")
    )
    lengths = np.diff(np.flatnonzero(ends), prepend=-1) - 1
    limit = np.float32(action_limit)
    return Statistics(
        rows=len(actions),
        episodes=len(lengths),
        transitions=len(valid),
        episode_length_min=int(lengths.min()),
        episode_length_mean=float(lengths.mean()),
        episode_length_max=int(lengths.max()),
        action_saturation=float((np.abs(actions[valid]) >= limit).mean()),
        tasks=tuple(
            TaskStatistics(
                task=task,
                reward_min=float(reward[valid].min()),
                reward_mean=float(reward[valid].mean(dtype=np.float64)),
                reward_max=float(reward[valid].max()),
                success_rows=int(np.count_nonzero(~mask[valid])),
            )
            for task, reward, mask in zip(tasks, rewards, masks, strict=True)
        ),
    )


def fingerprint(tasks: tuple[int, ...], arrays: Mapping[str, Any], more: Sequence[object]) -> str:
    """SHA-256 over every array's shape and content, the task numbers and more, in hexadecimal.

    It depends on nothing else: neither file nor date nor machine. Reads everything once.

    Args:
        tasks: number of each task.
        arrays: by name; numbers count as little-endian float32, truth values and bytes as such.
        more: what else tells the data from others, by its representation.
    """
    digest = hashlib.sha256(repr(tasks).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}".encode())
        values = np.asarray(array)
        kind = "<f4" if values.dtype.kind == "f" else values.dtype
        content = np.ascontiguousarray(values.astype(kind, copy=False))
        digest.update(content.reshape(-1).view(np.uint8).data)
    for thing in more:
        digest.update(repr(thing).encode())
    return digest.hexdigest()
