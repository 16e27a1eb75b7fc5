"""A small log, and files of it written by each format's own library."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class Episode(NamedTuple):
    """T steps of a point that is pushed; actions in newtons, from 2 to 6, the last entry constant.

    Attributes:
        observations: float32 `[T + 1, 3]`.
        actions: float32 `[T, 3]`.
        rewards: float32 `[T]`.
        terminated: whether its last step ends the task; otherwise the log stops there.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


def episodes(lengths: tuple[int, ...] = (5, 4, 7, 3), seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        actions = rng.uniform(2, 6, (length, 3))
        actions[:, 2] = 7.5
        made.append(
            Episode(
                np.cumsum(rng.normal(size=(length + 1, 3)), axis=0).astype(np.float32) + 50,
                actions.astype(np.float32),
                rng.normal(size=length).astype(np.float32),
                terminated=number % 2 == 0,
            )
        )
    return made


def flat(log: list[Episode]) -> dict[str, np.ndarray]:
    """One row a step, without the last observation of an episode, as D4RL has it."""
    ends = [np.arange(len(one.rewards)) == len(one.rewards) - 1 for one in log]
    return {
        "observations": np.concatenate([one.observations[:-1] for one in log]),
        "actions": np.concatenate([one.actions for one in log]),
        "rewards": np.concatenate([one.rewards for one in log]),
        "terminals": np.concatenate([e & one.terminated for e, one in zip(ends, log, strict=True)]),
        "timeouts": np.concatenate(
            [e & (not one.terminated) for e, one in zip(ends, log, strict=True)]
        ),
    }


def expected(log: list[Episode], *, last_is_known: bool) -> dict[str, np.ndarray]:
    """What the rows must be, put together episode by episode in plain Python."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "masks", "terminals")
    }
    for one in log:
        steps = len(one.rewards)
        observations, actions = list(one.observations[:steps]), list(one.actions)
        rewards, masks = list(one.rewards), [1.0] * steps
        if one.terminated:
            masks[-1] = 0.0
        if last_is_known or one.terminated:
            last = one.observations[-1] if last_is_known else one.observations[-2]
            observations.append(last)
            actions.append(actions[-1])
            rewards.append(np.float32(0))
            masks.append(1.0)
        rows["observations"] += observations
        rows["actions"] += actions
        rows["rewards"] += rewards
        rows["masks"] += masks
        rows["terminals"] += [False] * (len(rewards) - 1) + [True]
    return {name: np.array(values) for name, values in rows.items()}


def write_npz(path: Path, log: list[Episode]) -> Path:
    np.savez(path, allow_pickle=False, **flat(log))
    return path


def write_d4rl(path: Path, log: list[Episode]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in flat(log).items():
            file.create_dataset(name, data=array, compression="gzip")
        file.create_dataset("metadata/algorithm", data=b"random")
    return path


def write_robomimic(path: Path, log: list[Episode]) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(one.rewards) for one in log)
        # In the order of names, which is not that of numbers beyond ten.
        for number, one in enumerate(log):
            demo = data.create_group(f"demo_{number}")
            for group, rows in (("obs", one.observations[:-1]), ("next_obs", one.observations[1:])):
                demo.create_dataset(f"{group}/object", data=rows[:, 2:])
                demo.create_dataset(f"{group}/arm", data=rows[:, :2])
                pixels = np.zeros((len(rows), 4, 4, 3), np.uint8)
                demo.create_dataset(f"{group}/agentview_image", data=pixels)
            demo.create_dataset("actions", data=one.actions)
            demo.create_dataset("rewards", data=one.rewards)
            dones = np.zeros(len(one.rewards), np.int64)
            dones[-1] = one.terminated
            demo.create_dataset("dones", data=dones)
    return path


def write_lerobot(folder: Path, log: list[Episode], *, success: bool = True) -> Path:
    """One file an episode, in a folder with other files beside, as LeRobot lays it out."""
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text("{}")
    for number, one in enumerate(log):
        count = len(one.rewards)
        last = np.arange(count) == count - 1
        columns = {
            "observation.state": pa.FixedSizeListArray.from_arrays(
                pa.array(one.observations[:-1].ravel()), 3
            ),
            "action": pa.array(list(one.actions)),
            "episode_index": pa.array(np.full(count, number)),
            "frame_index": pa.array(np.arange(count)),
            "timestamp": pa.array(np.arange(count, dtype=np.float32) / 10),
            "next.reward": pa.array(one.rewards),
            "next.done": pa.array(last),
            "task": pa.array(["push"] * count),
        }
        if success:
            columns["next.success"] = pa.array(last & one.terminated)
        path = folder / f"data/chunk-000/episode_{number:06d}.parquet"
        pq.write_table(pa.table(columns), path)
    return folder


def write_csv(path: Path, log: list[Episode]) -> Path:
    columns = flat(log)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("terminated", "truncated", "reward", "note")
        writer.writerow(
            [*(f"action_{i}" for i in range(3)), *(f"obs_{i}" for i in range(3)), *names]
        )
        for row in range(len(columns["rewards"])):
            writer.writerow(
                [
                    *map(repr, map(float, columns["actions"][row])),
                    *map(repr, map(float, columns["observations"][row])),
                    str(bool(columns["terminals"][row])),
                    int(columns["timeouts"][row]),
                    repr(float(columns["rewards"][row])),
                    "a note, quoted",
                ]
            )
    return path
