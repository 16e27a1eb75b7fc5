"""What a data set consists of: its statistics, and the fingerprint that tells it from others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sorl.units import USUAL

if TYPE_CHECKING:
    from sorl.data.dataset import Dataset


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


def statistics(dataset: Dataset, *, action_limit: float) -> Statistics:
    """Count and summarise; the last row of each episode counts only as a row.

    Args:
        dataset: the data.
        action_limit: magnitude to which its actions are clipped.
    """
    valid = np.asarray(dataset.valid_rows)
    lengths = np.diff(np.flatnonzero(np.asarray(dataset.ends)), prepend=-1) - 1
    limit = np.float32(action_limit)
    rewards, masks = np.asarray(dataset.rewards), np.asarray(dataset.masks)
    return Statistics(
        rows=dataset.actions.shape[0],
        episodes=len(lengths),
        transitions=len(valid),
        episode_length_min=int(lengths.min()),
        episode_length_mean=float(lengths.mean()),
        episode_length_max=int(lengths.max()),
        action_saturation=float((np.abs(np.asarray(dataset.actions)[valid]) >= limit).mean()),
        tasks=tuple(
            TaskStatistics(
                task=task,
                reward_min=float(reward[valid].min()),
                reward_mean=float(reward[valid].mean(dtype=np.float64)),
                reward_max=float(reward[valid].max()),
                success_rows=int(np.count_nonzero(~mask[valid])),
            )
            for task, reward, mask in zip(dataset.tasks, rewards, masks, strict=True)
        ),
    )


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over every array's shape and content and the task numbers, in hexadecimal.

    Units, the weights of a mixture and images count too, where there are any; how images are read
    does not.

    It depends on nothing else: neither file nor date nor machine. Reads everything once.
    """
    digest = hashlib.sha256(repr(dataset.tasks).encode())
    arrays = [
        ("observations", dataset.observations, "<f4"),
        ("actions", dataset.actions, "<f4"),
        ("ends", dataset.ends, "?"),
        ("rewards", dataset.rewards, "<f4"),
        ("masks", dataset.masks, "?"),
    ]
    if dataset.images is not None:
        arrays.append(("images", dataset.images.frames, "|u1"))
    for name, array, kind in arrays:
        digest.update(f"{name} {array.shape}".encode())
        content = np.ascontiguousarray(np.asarray(array).astype(kind, copy=False))
        digest.update(content.reshape(-1).view(np.uint8).data)
    if dataset.units != USUAL:
        digest.update(repr(dataset.units).encode())
    if dataset.mixture is not None:
        for leaf in (dataset.mixture.weights, dataset.mixture.first, dataset.mixture.count):
            digest.update(repr(np.asarray(leaf).tolist()).encode())
    return digest.hexdigest()
