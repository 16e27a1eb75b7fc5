"""Whether the runs that are there were trained on the data files that are there.

A run's folder is named after its settings, which tell no two files of the same data set apart.
Fingerprints do. To make one the data are loaded, in a process of its own and on the CPU: where JAX
has once started on a GPU it holds memory that the runs need.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sorl.data.sources import load_dataset
from sorl.errors import InputError, WorkerError
from sorl.experiments.experiment import OnProgress
from sorl.jobs.job import settings_in
from sorl.jobs.outcome import is_run
from sorl.launch.work import Work
from sorl.runs import Run


def comparable(works: Sequence[Work]) -> list[Work]:
    """The works whose run was begun and whose data file is there."""
    return [work for work in works if is_run(work.run) and _file_of(work) is not None]


def check(works: Sequence[Work], on_progress: OnProgress) -> None:
    """Compare every run with its data file, which is loaded once.

    Args:
        works: `comparable` ones.
        on_progress: called after every run.

    Raises:
        InputError: a run was trained on other data, or a file cannot be used.
        WorkerError: the process that loads a file died.
    """
    found: dict[tuple[str, ...], str] = {}
    for done, work in enumerate(works):
        path = _file_of(work)
        asked = str(work.job.environment), str(path), *map(str, work.job.tasks or ())
        if asked not in found:
            found[asked] = _fingerprint(asked)
        *_, trained_on = settings_in(Run.open(work.run))
        if trained_on != found[asked]:
            raise InputError(
                f"The run {work.run} was trained on other data (fingerprint {trained_on[:12]}) "
                f"than {path} (fingerprint {found[asked][:12]}): name the folder of its data by "
                "--data, or choose another --out."
            )
        on_progress(done + 1, len(works))


def _file_of(work: Work) -> Path | None:
    data = work.job.data
    return data if isinstance(data, Path) and data.exists() else None


def _fingerprint(asked: Sequence[str]) -> str:
    """What `main` prints in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "sorl.experiments.trained_data", *asked],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 0:
        return ended.stdout.split()[-1]
    last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    if ended.returncode == 2:
        raise InputError(last)
    raise WorkerError(f"The process that loads {asked[1]} died: {last}")


def main(arguments: Sequence[str]) -> int:
    """Print the fingerprint of a data file, given its environment, its path and its tasks."""
    environment, path, *tasks = arguments
    try:
        print(load_dataset(environment, data=path, tasks=tuple(map(int, tasks))).fingerprint)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
