"""`generate`: from the name of a data set to its two files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

from sorl import platform
from sorl.data.generate.archive import is_whole_part, merge_parts
from sorl.data.generate.expert.actor import Actor, read_expert
from sorl.data.generate.expert.find import find_expert
from sorl.data.generate.parts import open_parts, remove_parts
from sorl.data.generate.pool import roll_jobs
from sorl.data.generate.protocols import Protocol, find_protocol
from sorl.data.generate.seeding import SPLITS, Split
from sorl.data.generate.worker import Job
from sorl.errors import InputError


@dataclass(frozen=True)
class Progress:
    """How far a generation has come."""

    stage: Literal["training", "stopping", "rolling", "writing"]
    """`stopping` is said once, when an expert's training will stop at the end of its episode."""
    done: int
    """Rows through this stage; steps of the environment while an expert is trained."""
    found: int
    """Those of them that an interrupted run had left."""
    total: int
    """Rows or steps that will have passed this stage at its end."""


OnProgress: TypeAlias = Callable[[Progress], object]


@dataclass(frozen=True)
class GenerationReport:
    """What a generation wrote."""

    name: str
    train_path: Path
    validation_path: Path
    train_rows: int
    validation_rows: int
    found_rows: int
    """Rows, of both files, taken over from an interrupted run."""
    expert: Path | None
    """File of the expert that walked; None where the data set needs none."""
    seconds: float
    """Wall-clock time of this run."""


def generate(
    name: str,
    *,
    out: Path,
    episodes: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    expert: Path | None = None,
    expert_steps: int | None = None,
    on_progress: OnProgress | None = None,
) -> GenerationReport:
    """Write `NAME.npz` and `NAME-val.npz` by OGBench's published protocol.

    The bytes depend on `name`, `episodes`, `seed` and the expert's file (and on the versions of
    ogbench, mujoco, numpy and zlib), not on `workers`. Fewer episodes are the first ones of more.
    Until both files are there, finished episodes wait in the hidden folder `.NAME.parts` inside
    `out`: the same call after a kill or an interrupt goes on from them. A set that needs an expert
    trains it first, with the same seed, into the folder `experts` inside `out`, where the next call
    finds it. In a script, call this under
    `if __name__ == "__main__":`, as worker processes are spawned.

    Args:
        name: a data set of `PROTOCOLS`.
        out: folder for both files; made if it is missing.
        episodes: training episodes, at least 1; the published number by default. There are a
            tenth as many validation episodes, and at least 1.
        workers: processes, at least 1; as many as there are cores by default.
        seed: at least 0.
        overwrite: whether files that are there may be replaced.
        expert: file of a trained expert, to be used in place of one trained here.
        expert_steps: steps of the expert's training, at least 1; the published number by default.
        on_progress: called after each episode, in this process.

    Raises:
        InputError: an argument is out of range; files are there; an interrupted run with other
            settings, or another process, occupies the folder; it cannot be written; the disk is
            full.
            The expert does not fit the set, or the set needs none.
        KeyboardInterrupt: after an interrupt, with a sentence that says what has been kept.
        WorkerError: a worker process died.
    """
    protocol = find_protocol(name)
    episodes = _at_least(1, protocol.episodes if episodes is None else episodes, "episodes")
    workers = _at_least(1, platform.cores() if workers is None else workers, "workers")
    _at_least(0, seed, "seed")
    if expert_steps is not None:
        _at_least(1, expert_steps, "steps of the expert's training")
    counts: dict[Split, int] = {"train": episodes, "val": max(1, episodes // 10)}
    paths: dict[Split, Path] = {"train": out / f"{name}.npz", "val": out / f"{name}-val.npz"}
    folder = out / f".{name}.parts"
    # There only while the two files are being moved: one may be in its place and the other not.
    moving = folder / "moving"
    with _explained(out, folder):
        if not overwrite and not moving.exists():
            _refuse_existing(paths)
    expert = find_expert(
        name,
        protocol,
        root=out / "experts",
        given=expert,
        steps=expert_steps,
        seed=seed,
        on_step=lambda *counts: _report(on_progress, Progress("training", *counts)),
        on_stopping=lambda: _report(on_progress, Progress("stopping", 0, 0, 0)),
    )
    start = time.perf_counter()
    settings: dict[str, int | str] = {
        "name": name,
        "seed": seed,
        "rows": protocol.rows,
        "ogbench": version("ogbench"),
        "mujoco": version("mujoco"),
    }
    actor: Actor | None = None
    if expert is not None:
        # Read once: while its training goes on the file changes.
        actor, _, settings["expert"] = read_expert(expert)
    jobs: dict[Split, list[Job]] = {
        split: [Job(split, i, folder / f"{split}-{i:06d}.npz") for i in range(counts[split])]
        for split in SPLITS
    }
    with _explained(out, folder), ExitStack() as stack:
        stack.enter_context(open_parts(folder, settings))
        found = _roll(
            [job for split in SPLITS for job in jobs[split]],
            protocol,
            seed,
            workers,
            actor,
            on_progress,
        )
        _write(jobs, {s: folder / path.name for s, path in paths.items()}, protocol, on_progress)
        moving.touch()
        for path in paths.values():
            os.replace(folder / path.name, path)
        remove_parts(folder)
    return GenerationReport(
        name=name,
        train_path=paths["train"],
        validation_path=paths["val"],
        train_rows=counts["train"] * protocol.rows,
        validation_rows=counts["val"] * protocol.rows,
        found_rows=found,
        expert=expert,
        seconds=time.perf_counter() - start,
    )


def _roll(
    jobs: list[Job],
    protocol: Protocol,
    seed: int,
    workers: int,
    actor: Actor | None,
    on_progress: OnProgress | None,
) -> int:
    """Roll every episode that is not there yet; return the rows of those that are."""
    missing = [job for job in jobs if not is_whole_part(job.part, protocol.rows)]
    total = len(jobs) * protocol.rows
    found = done = total - len(missing) * protocol.rows
    _report(on_progress, Progress("rolling", done, found, total))
    rolling = roll_jobs(missing, protocol, seed=seed, workers=workers, actor=actor)
    with closing(rolling) as finished:
        for _ in finished:
            done += protocol.rows
            _report(on_progress, Progress("rolling", done, found, total))
    return found


def _write(
    jobs: dict[Split, list[Job]],
    paths: dict[Split, Path],
    protocol: Protocol,
    on_progress: OnProgress | None,
) -> None:
    """Merge the episodes into one compressed file a split."""
    done, total = 0, sum(len(split) for split in jobs.values()) * protocol.rows

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        _report(on_progress, Progress("writing", done, 0, total))

    for split, path in paths.items():
        parts = [job.part for job in jobs[split]]
        merge_parts(parts, path, rows=protocol.rows, on_rows=advance)


def _report(on_progress: OnProgress | None, progress: Progress) -> None:
    if on_progress is not None:
        on_progress(progress)


def _at_least(least: int, value: int, what: str) -> int:
    if value < least:
        raise InputError(f"{value} {what} cannot be used: give {least} or more.")
    return value


def _refuse_existing(paths: dict[Split, Path]) -> None:
    for path in paths.values():
        if path.exists():
            raise InputError(
                f"{path} is already there: choose another folder, or replace it with overwrite."
            )


@contextmanager
def _explained(out: Path, folder: Path) -> Iterator[None]:
    """Say in one sentence what stopped a generation and what is kept."""
    kept = f"finished episodes are kept in {folder}, and the same call goes on from there"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped; {kept}.") from None
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{out} is not a folder: choose another for the output.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"The disk of {out} is full: make room ({kept}).") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"{out} cannot be written to ({error.strerror}): choose another folder for the "
                "output, or change its permissions."
            ) from error
        raise
