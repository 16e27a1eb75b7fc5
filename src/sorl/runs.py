"""A run's folder: its settings, its tables, its lock.

    config.json         every setting of the run and where it came from
    metrics.csv         update, task, seed and what the training measured
    timing.csv          update, seconds, updates_per_second
    evaluations.csv     update, task, seed, budget and the scores
    off_policy.csv      update, task, seed and what the data say, of a run without environment
    events.jsonl        what happened to whom, for example a seed that was stopped
    checkpoints/        training states, see `sorl.checkpoint`
    policy/<member>/    released policies, see `sorl.deployment.policy`

No clock has a part in metrics.csv, so it is the same, byte for byte, whether or not the training
was killed and resumed; of evaluations.csv that is true but for the milliseconds of acting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sorl import files, tables
from sorl.errors import InputError

FORMAT = 1
# What may differ between the command that started a run and the one that resumes it.
INCIDENTAL = ("created", "versions", "machine", "dataset.path")
# Runs in float32 are written as they always were.
_LEFT_OUT = {"training.arithmetic": "float32"}

_SCORES = ("evaluations.csv", "off_policy.csv")
_LOCKED: set[Path] = set()


@dataclasses.dataclass(frozen=True)
class Run:
    """One training on disk.

    Attributes:
        path: the folder.
        config: every setting, as JSON holds it (tuples have become lists).
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Any]) -> Run:
        """Start a run in a new or empty folder.

        Args:
            path: the folder; its parents are made too.
            config: every setting; JSON must be able to hold it.

        Raises:
            InputError: there is a run already, or something else, or no permission.
        """
        path = Path(path)
        # Unlike Path.exists, False where we may not look; making the folder then says so.
        if os.path.exists(path / "config.json"):
            raise InputError(
                f"There is a run in {path} already: continue it with `sorl resume {path}` or "
                "choose another --out."
            )
        with files.explained("create the run", path):
            path.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(path)
            if any(entry.name != "lock" for entry in path.iterdir()):
                raise InputError(
                    f"The folder {path} is not empty and holds no run: choose another --out."
                )
        files.write_json(path / "config.json", {"format": FORMAT, **config})
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open an existing run; nothing is written.

        Raises:
            InputError: `path` holds no run, a damaged one, or one of another format.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise InputError(f"There is no run in {path}: it has no config.json, check the path.")
        config = files.read_json(path / "config.json")
        if config.get("format") != FORMAT:
            raise InputError(
                f"{path / 'config.json'} has format {config.get('format')!r} and this version "
                f"reads format {FORMAT}: use the version of sorl that wrote it."
            )
        return cls(path, config)

    @property
    def checkpoints(self) -> Path:
        """The folder of the training states."""
        return self.path / "checkpoints"

    @property
    def policies(self) -> Path:
        """The folder of the released policies, one folder a member in it."""
        return self.path / "policy"

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to metrics.csv; each names its `update`, `task` and `seed`."""
        tables.append_rows(self.path / "metrics.csv", rows)

    def append_timing(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to timing.csv; each names its `update`."""
        tables.append_rows(self.path / "timing.csv", rows)

    def append_evaluations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to evaluations.csv; each names its `update`, `task`, `seed` and `budget`."""
        tables.append_rows(self.path / "evaluations.csv", rows)

    def append_off_policy(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to off_policy.csv; each names its `update`, `task` and `seed`."""
        tables.append_rows(self.path / "off_policy.csv", rows)

    def append_event(self, update: int, message: str, **details: Any) -> None:
        """Add a sentence to events.jsonl, for example with `task=2, seed=0`."""
        tables.append_line(
            self.path / "events.jsonl", {"update": update, **details, "message": message}
        )

    def metrics(self) -> list[dict[str, float | str]]:
        """The rows of metrics.csv; empty cells are left out."""
        return tables.read_rows(self.path / "metrics.csv")

    def timing(self) -> list[dict[str, float | str]]:
        """The rows of timing.csv; empty cells are left out."""
        return tables.read_rows(self.path / "timing.csv")

    def evaluations(self) -> list[dict[str, float | str]]:
        """The rows of evaluations.csv; empty cells are left out."""
        return tables.read_rows(self.path / "evaluations.csv")

    def off_policy(self) -> list[dict[str, float | str]]:
        """The rows of off_policy.csv; empty cells are left out."""
        return tables.read_rows(self.path / "off_policy.csv")

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order."""
        return tables.read_lines(self.path / "events.jsonl")

    def rewind(self, update: int) -> None:
        """Drop everything recorded after `update`, to continue from its checkpoint."""
        for name in ("metrics.csv", "timing.csv", *_SCORES):
            tables.rewind_rows(self.path / name, update)
        tables.rewind_lines(self.path / "events.jsonl", update)

    def forget_scores(self, updates: Collection[int], budgets: Collection[str]) -> None:
        """Drop what was found of these updates at these budgets, to find it anew."""

        def kept(row: Mapping[str, str]) -> bool:
            return float(row["update"]) not in updates or row["budget"] not in budgets

        for name in _SCORES:
            tables.keep_rows(self.path / name, kept)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Make this process the only one that trains into the run, see `locked`."""
        return locked(self.path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make this process the only one that trains into a folder, until the block ends.

    The system drops the lock with its process, however that ends.

    Args:
        folder: of a run, or of many.

    Raises:
        InputError: another process, or another thread of this one, holds it.
    """
    path = (folder / "lock").resolve()
    if path in _LOCKED:
        raise InputError(f"This process trains into {folder} already: wait for it to end.")
    with contextlib.ExitStack() as stack:
        with files.explained("lock", path):
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            # lockf, not flock: a worker process that outlives a killed trainer would inherit
            # and keep the other kind.
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                raise InputError(
                    f"Another process ({file.read().strip() or 'unknown'}) trains into "
                    f"{folder}: wait for it to end or choose another --out."
                ) from error
            file.truncate(0)
            file.write(f"pid {os.getpid()}\n")
            file.flush()
        _LOCKED.add(path)
        try:
            yield
        finally:
            _LOCKED.discard(path)


def check_same_config(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    ignored: Collection[str] = INCIDENTAL,
) -> None:
    """Make sure that a run is resumed with the settings it was started with.

    Args:
        saved: the run's config.
        wanted: the settings asked for; settings it does not name are not compared.
        ignored: dotted names, each with all below it, that may differ.

    Raises:
        InputError: names every setting that differs, with both values.
    """
    before, now = _flat(saved), _flat(json.loads(json.dumps(dict(wanted))))
    if "training" in wanted:
        before, now = ({**_LEFT_OUT, **settings} for settings in (before, now))
    different = [
        f"{name} is {json.dumps(before.get(name))} in the run and {json.dumps(value)} now"
        for name, value in now.items()
        if not any(name == other or name.startswith(f"{other}.") for other in ignored)
        and (name not in before or before[name] != value)
    ]
    if different:
        raise InputError(
            f"The run was started with other settings: {'; '.join(different)}. Resume it without "
            "changing them, or start a new run with another --out."
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flat(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat
