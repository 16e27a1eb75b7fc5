"""A worker process: rolls the episodes it is asked for and leaves each as a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from sorl import graphics
from sorl.data.generate.expert.actor import Actor
from sorl.data.generate.protocols import Protocol
from sorl.data.generate.seeding import Split

# Libraries read these while they are imported. The matrices are 6 x 6, so threads only cost; where
# nothing is drawn no graphics library is needed, and where it is, a thread a worker is enough.
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
}
_WITHOUT_PICTURES = {"MUJOCO_GL": "disable"}


@dataclass(frozen=True)
class Job:
    """One episode to roll."""

    split: Split
    episode: int
    part: Path
    """Where to leave it."""


@contextmanager
def worker_variables(*, renders: bool) -> Iterator[None]:
    """Set a worker's environment variables: wrap its start in this, for it inherits them.

    Raises:
        InputError: it has to draw pictures, and nothing draws on this machine.
    """
    variables = {**_VARIABLES, **(graphics.working() if renders else _WITHOUT_PICTURES)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve_jobs(connection: Connection, protocol: Protocol, seed: int, actor: Actor | None) -> None:
    """Roll each `Job` received; answer None when it is on the disk, else the OSError in its way.

    Returns when the other end is closed, be it on purpose or because the parent was killed.
    """
    from sorl.data.generate.archive import save_part

    # The libraries warn about displays and number types; nobody could read it here.
    warnings.simplefilter("ignore")
    from sorl.data.generate.environment import make_environment
    from sorl.data.generate.roll import roll_episode

    environment = make_environment(protocol)
    try:
        while True:
            job: Job = connection.recv()
            rows = roll_episode(
                environment,
                protocol,
                seed=seed,
                split=job.split,
                episode=job.episode,
                actor=actor,
            )
            try:
                save_part(job.part, rows)
                answer = None
            except OSError as error:
                answer = error
            connection.send(answer)
    except (EOFError, ConnectionError):
        return
