"""Data larger than the memory: shards on disk, of which rows are read as they are drawn.

A folder of shards holds

    shards.json        sizes, tasks, units, and what each shard holds
    00000/rows.npy     records of observation, action, reward and mask of every task, end
    00000/ends.npy     the last row of each episode

`sorl.data.sharding` makes it. Files are mapped into memory and read at random, so what stays in
memory does not grow with the rows but for eight bytes an episode; the operating system keeps as
much of the rest as it has room for.

Transitions are numbered through all shards. Drawing uniform numbers is therefore drawing uniformly
with replacement from all data, and equals what `sorl.data.dataset` draws from the same data on the
device, number by number: nothing is shuffled, and a run that goes on needs no reader's state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from sorl import files
from sorl.data.dataset import places_of
from sorl.errors import InputError
from sorl.types import Spec, Transition
from sorl.units import Units

FORMAT = 1
MANIFEST = "shards.json"
MOST_TRANSITIONS = 2**31 - 1
"""Numbers of transitions are drawn as 32-bit integers."""
_OTHER_FILES = 512
"""Room for files that this process has open beside its shards."""


class Shard(NamedTuple):
    """What a folder of shards knows of one of them.

    Attributes:
        name: of its folder.
        source: name of the file that it was made of.
        bytes: size of that file.
        rows: its rows, including the last one of each episode.
        episodes: its episodes.
        largest_rewards: the largest magnitude of a reward of each task.
        success_rows: transitions that solve each task.
        fingerprint: of its content, see `sorl.data.summary.fingerprint`.
        contents: what that file holds, see `sorl.data.archive.ArchiveReader`; empty where shards
            were made before this was kept.
    """

    name: str
    source: str
    bytes: int
    rows: int
    episodes: int
    largest_rewards: tuple[float, ...]
    success_rows: tuple[int, ...]
    fingerprint: str
    contents: str = ""

    @property
    def transitions(self) -> int:
        """Rows that have a successor in their episode."""
        return self.rows - self.episodes

    @classmethod
    def parse(cls, description: Any) -> Shard:
        """The inverse of `_asdict`, as JSON holds it.

        Raises:
            TypeError: an entry is missing, unknown or of another type.
            ValueError: a number makes no sense.
        """
        shard = cls(**description)
        counts = (shard.bytes, shard.rows, shard.episodes, *shard.success_rows)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"{counts} should be whole numbers")
        if not 0 < shard.episodes < shard.rows or Path(shard.name).name != shard.name:
            raise ValueError(f"{shard.rows} rows of {shard.episodes} episodes in {shard.name!r}")
        return shard._replace(
            largest_rewards=tuple(map(float, shard.largest_rewards)),
            success_rows=tuple(shard.success_rows),
        )


@dataclasses.dataclass(frozen=True)
class Shards:
    """Logged experience on disk. Open it with `open_shards`.

    Attributes:
        path: the folder.
        spec: sizes of one observation and one action.
        environment: OGBench's name of the data set whose tasks gave the rewards, or None.
        stored_tasks: tasks whose rewards the files hold.
        tasks: those that are wanted, see `select_tasks`.
        units: what observations and actions were before they were mapped to these.
        shards: what each shard holds.
    """

    path: Path
    spec: Spec
    environment: str | None
    stored_tasks: tuple[int, ...]
    tasks: tuple[int, ...]
    units: Units
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> None:
        """Shards hold no images so far."""
        return

    @functools.cached_property
    def transitions(self) -> int:
        """Transitions of all shards."""
        return int(self._first[-1])

    @property
    def largest_rewards(self) -> Float32[np.ndarray, " tasks"]:
        """The largest magnitude of a reward of each wanted task."""
        largest = np.max([shard.largest_rewards for shard in self.shards], axis=0)
        return largest[self.task_places].astype(np.float32)

    @property
    def task_places(self) -> Int[np.ndarray, " tasks"]:
        """Where the wanted tasks stand among the stored ones."""
        return places_of(self.tasks, self.stored_tasks)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal over the fingerprints of the shards, and the wanted tasks.

        It trusts the manifest: the rows are not read.
        """
        told = repr([self.tasks, *(shard.fingerprint for shard in self.shards)])
        return hashlib.sha256(told.encode()).hexdigest()

    def select_tasks(self, tasks: Sequence[int]) -> Shards:
        """The same data with these tasks only, in this order.

        Raises:
            InputError: the files do not hold one of them, one is named twice, or none is named.
        """
        places_of(tasks, self.stored_tasks)
        return dataclasses.replace(self, tasks=tuple(tasks))

    def read(
        self, numbers: Int[np.ndarray, "*shape"], task_places: Int[np.ndarray, "*or_less"]
    ) -> Transition:
        """Transitions by their numbers.

        Args:
            numbers: 0 to `transitions - 1`.
            task_places: position among `stored_tasks` of the task whose reward is wanted, of the
                shape that is broadcast to that of `numbers`.

        Returns:
            NumPy arrays, each with the axes of `numbers` first; as `Dataset.transition` gives them.
        """
        flat = numbers.reshape(-1)
        here, after = (np.empty(flat.size, self._record) for _ in range(2))
        shard_of = np.searchsorted(self._first, flat, side="right") - 1
        for index in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == index)
            mapped, before = self._open(int(index))
            place = flat[chosen] - self._first[index]
            # Before the transition stand as many last rows as episodes that are over by then.
            rows = place + np.searchsorted(before, place, side="right")
            here[chosen], after[chosen] = mapped[rows], mapped[rows + 1]

        def shaped(array: np.ndarray) -> Any:
            return np.ascontiguousarray(array).reshape(*numbers.shape, *array.shape[1:])

        places = np.broadcast_to(task_places, numbers.shape).reshape(-1)
        every = np.arange(flat.size)
        return Transition(
            observation=shaped(here["observation"]),
            action=shaped(here["action"]),
            reward=shaped(here["reward"][every, places]),
            mask=shaped(here["mask"][every, places].astype(np.float32)),
            next_observation=shaped(after["observation"]),
            next_action=shaped(after["action"]),
            next_action_mask=shaped(1 - after["end"].astype(np.float32)),
        )

    @property
    def _record(self) -> np.dtype:
        return record_of(self.spec, len(self.stored_tasks))

    @functools.cached_property
    def _first(self) -> Int[np.ndarray, " shards_and_one"]:
        """Number of each shard's first transition, and of all."""
        return np.cumsum([0, *(shard.transitions for shard in self.shards)])

    @functools.cached_property
    def _opened(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A shard's records, and how many transitions stand before the end of each episode."""
        if index not in self._opened:
            shard, folder = self.shards[index], self.path / self.shards[index].name
            rows = _mapped(folder / "rows.npy", (shard.rows,), self._record)
            ends = _mapped(folder / "ends.npy", (shard.episodes,), np.dtype(np.int64))
            if ends[-1] != shard.rows - 1 or np.diff(ends, prepend=-1).min() < 2:
                raise InputError(
                    f"{folder / 'ends.npy'} is damaged: these are no ends of episodes; make the "
                    "shards again, or restore it from a copy."
                )
            self._opened[index] = rows, ends - np.arange(shard.episodes)
        return self._opened[index]


def record_of(spec: Spec, tasks: int) -> np.dtype:
    """What one row is on disk; a row and its successor lie side by side."""
    return np.dtype(
        [
            ("observation", "<f4", (spec.observation_size,)),
            ("action", "<f4", (spec.action_size,)),
            ("reward", "<f4", (tasks,)),
            ("mask", "?", (tasks,)),
            ("end", "?"),
        ],
        align=True,
    )


class Manifest(NamedTuple):
    """What shards.json says.

    Attributes:
        spec: sizes of one observation and one action.
        environment: OGBench's name of the data set whose tasks gave the rewards, or None.
        tasks: tasks whose rewards the files hold.
        units: what observations and actions were before they were mapped to these.
        files: how many shards there will be.
        shards: those that are made.
    """

    spec: Spec
    environment: str | None
    tasks: tuple[int, ...]
    units: Units
    files: int
    shards: tuple[Shard, ...]

    def write(self, folder: Path) -> None:
        """Write it in one step."""
        content = {
            "format": FORMAT,
            **self._asdict(),
            "spec": self.spec.describe(),
            "units": self.units.describe(),
            "shards": [shard._asdict() for shard in self.shards],
        }
        files.write_json(folder / MANIFEST, content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read it.

        Raises:
            InputError: it is missing, damaged or of another version.
        """
        told = files.read_json(folder / MANIFEST)
        if (version := told.pop("format", None)) != FORMAT:
            raise InputError(
                f"{folder / MANIFEST} has format {version!r}, and this version of sorl reads "
                f"format {FORMAT}: use the version that made it, or make the shards again."
            )
        try:
            spec, units = Spec.parse(told.pop("spec")), Units.parse(told.pop("units"))
            tasks = tuple(map(int, told.pop("tasks")))
            shards = tuple(map(Shard.parse, told.pop("shards")))
            if any(
                not len(tasks) == len(shard.largest_rewards) == len(shard.success_rows)
                for shard in shards
            ):
                raise ValueError("a shard has another number of tasks")
            return cls(spec=spec, tasks=tasks, units=units, shards=shards, **told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{folder / MANIFEST} lacks or garbles an entry ({error}): restore it from a copy, "
                "or make the shards again."
            ) from error


def is_shards(path: object) -> bool:
    """Whether there is a folder of shards at a path."""
    return isinstance(path, Path | str) and (Path(path).expanduser() / MANIFEST).is_file()


def open_shards(path: Path | str) -> Shards:
    """Open a folder of shards with all of its tasks; rows are read when they are drawn.

    Raises:
        InputError: no such folder, one that is not complete, or one whose manifest or shards are
            damaged or of another version.
    """
    path = Path(path).expanduser()
    told = Manifest.read(path)
    if len(told.shards) != told.files:
        raise InputError(
            f"{path} holds {len(told.shards)} of {told.files} shards: give the command that was to "
            "make it again, and it goes on where it stopped."
        )
    shards = Shards(
        path=path,
        spec=told.spec,
        environment=told.environment,
        stored_tasks=told.tasks,
        tasks=told.tasks,
        units=told.units,
        shards=told.shards,
    )
    # Twice, for what `select_tasks` gives opens them for itself.
    _allow_open_files(2 * len(shards.shards) + _OTHER_FILES)
    for index in range(len(shards.shards)):
        shards._open(index)
    return shards


def _allow_open_files(count: int) -> None:
    """Let this process have so many files open, as far as it may; every memory map keeps one."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe_shards(path: Path) -> str:
    """What is in a folder of shards, in a few lines."""
    told = Manifest.read(path)
    rows, episodes = (sum(getattr(it, name) for it in told.shards) for name in ("rows", "episodes"))
    lines = [
        f"{path}: {len(told.shards)} of {told.files} shards, {rows:,} rows in {episodes:,} "
        f"episodes, {told.spec.observation_size} observation entries, {told.spec.action_size} "
        f"action entries{f', {told.environment}' if told.environment else ''}"
    ]
    for place, task in enumerate(told.tasks):
        solved = sum(shard.success_rows[place] for shard in told.shards)
        # Without an environment, where an episode ends for good, which need be no success.
        what = "success" if told.environment else "terminating"
        lines.append(f"task {task}: {solved:,} {what} rows")
    return "\n".join(lines)


def _mapped(path: Path, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    """An array on disk, of just this shape and type."""
    with files.explained("read", path):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise InputError(
                f"{path} is damaged ({error}): make the shards again, or restore it from a copy."
            ) from error
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != kind:
        raise InputError(
            f"{path} holds {array.dtype} of shape {array.shape}, and {MANIFEST} says {kind} of "
            f"shape {shape}: make the shards again, or restore it from a copy."
        )
    if hasattr(mmap, "MADV_RANDOM"):
        # Else the system reads a hundred kilobytes around every row.
        array._mmap.madvise(mmap.MADV_RANDOM)  # pyright: ignore[reportAttributeAccessIssue]
    return array
