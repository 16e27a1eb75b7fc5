"""The queue of this machine: one work at a time on each GPU, or on each core where there is none.

Every work is a process of its own, since JAX takes its devices once and for all. A process that
dies is started again, and goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Sequence

from sorl import gpus
from sorl.errors import InputError
from sorl.interruption import Interruption
from sorl.launch import process
from sorl.launch.progress import Board, Standing
from sorl.launch.settling import ATTEMPTS, first_standings, settle
from sorl.launch.work import Work

_LOOK_SECONDS = 0.2
_SHOW_SECONDS = 2.0
_SAVE_SECONDS = 90.0


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place where one work runs at a time.

    Attributes:
        name: what it is called in tables.
        cores: cores that its process stays on; None means all.
        gpu: what CUDA_VISIBLE_DEVICES is set to; None leaves it as it is.
    """

    name: str
    cores: tuple[int, ...] | None = None
    gpu: str | None = None


def slots_here(works: int) -> list[Slot]:
    """A slot for each GPU; without one, the cores shared evenly among at most `works` slots."""
    if visible := gpus.visible():
        return [Slot(f"GPU {gpu}", gpu=gpu) for gpu in visible]
    try:
        cores = sorted(os.sched_getaffinity(0))
    except AttributeError:  # only Linux can bind a process to cores
        return [Slot("this machine")]
    count = max(1, min(works, len(cores)))
    shares = [tuple(cores[place::count]) for place in range(count)]
    return [
        Slot(f"core{'s'[: len(share) > 1]} {','.join(map(str, share))}", cores=share)
        for share in shares
    ]


def launch(
    works: Sequence[Work],
    *,
    slots: Sequence[Slot] | None = None,
    attempts: int = ATTEMPTS,
    quiet: bool = False,
) -> list[Standing]:
    """Do all works; called again, go on.

    Ctrl-C and SIGTERM stop every process with everything saved; asked twice, they are killed. When
    this process dies in any other way, they stop with everything saved by themselves. A work whose
    process cannot begin has failed, and the others go on.

    Args:
        works: the works, of names and folders that differ.
        slots: where; None means `slots_here`.
        attempts: how often a work is begun before it counts as failed, at least 1.
        quiet: print nothing.

    Returns:
        How each stands, in the same order: done, failed, or, asked to stop, stopped or waiting.

    Raises:
        InputError: two works share a name or a folder, `attempts` is below 1, there is no slot,
            or a folder cannot be written or holds another run.
    """
    if slots is not None and not slots:
        raise InputError("There is no slot to launch on: give at least one.")
    standings = first_standings(works, attempts)
    waiting = [standing for standing in standings if standing.state == "waiting"]
    free = list(slots_here(len(waiting)) if slots is None else slots)
    running: dict[str, tuple[Standing, Slot, subprocess.Popen[bytes]]] = {}
    board = Board(standings, quiet=quiet)
    stop = Interruption(lambda: None, "stopped at once; the same command goes on.")
    shown = 0.0
    patience = _SAVE_SECONDS
    try:
        with board, stop.handled():
            while running or (waiting and not stop.requested):
                while waiting and free and not stop.requested:
                    standing, slot = waiting.pop(0), free.pop(0)
                    standing.state, standing.where = "running", slot.name
                    standing.attempts += 1
                    try:
                        worker = _begin(standing.work, slot)
                    except InputError as error:
                        standing.state, standing.message = "failed", str(error)
                        free.append(slot)
                        continue
                    running[standing.work.name] = standing, slot, worker
                for name, (standing, slot, worker) in list(running.items()):
                    if stop.requested:
                        process.stop(worker)
                    code = worker.poll()
                    if code is None:
                        continue
                    del running[name]
                    process.stop(worker)  # closes our end of its input
                    free.append(slot)
                    reason = process.last_words(standing.work.folder, code)
                    settle(standing, code, reason, attempts=attempts, stopping=stop.requested)
                    if standing.state == "waiting":
                        waiting.append(standing)
                if time.monotonic() - shown >= _SHOW_SECONDS:
                    board.show()
                    shown = time.monotonic()
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:  # the user asked twice
        patience = 0.0
        raise
    finally:
        _end([worker for _, _, worker in running.values()], patience)
    return standings


def _end(workers: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask processes to stop with everything saved, and kill those that take longer than so long."""
    end = time.monotonic() + seconds
    try:
        for worker in workers:
            process.stop(worker)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, end - time.monotonic()))
    finally:  # at an interrupt too
        for worker in workers:
            worker.kill()
            worker.wait()


def _begin(work: Work, slot: Slot) -> subprocess.Popen[bytes]:
    environment = None
    if slot.gpu is not None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": slot.gpu}
    return process.begin(work.folder, cores=slot.cores, environment=environment)
