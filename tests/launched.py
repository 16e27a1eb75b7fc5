"""What tests of launches need: small works, and how they are watched, killed and compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finished_run import ENVIRONMENT, evaluations_without_clock
from sorl.algorithms.bc import BC
from sorl.jobs import Job
from sorl.jobs.scoring import Scoring, scores
from sorl.launch.progress import updates_done
from sorl.launch.work import Work
from sorl.runs import Run
from sorl.types import Budget

UPDATES = 4000
SCORINGS = (Scoring((Budget(1, 1),), milestones=2, episodes=1, seed=5),)


def work(folder: Path, data: Path, *, seed: int = 0, **changes: Any) -> Work:
    """A work of a small network that takes some seconds, most of them before its first update."""
    settings = {
        "environment": ENVIRONMENT,
        "data": data,
        "seeds": (seed,),
        "updates": UPDATES,
        "batch_size": 16,
        "log_every": 100,
        "evaluate_every": UPDATES // 2,
        "budgets": (Budget(1, 1),),
        "episodes": 1,
        "workers": 1,
        "checkpoint_seconds": 0.2,
        "tensorboard": False,
        **changes,
    }
    scorings = () if settings["environment"] is None else SCORINGS
    algorithm = BC(hidden=(16, 16))
    return Work(folder.name, folder, algorithm, Job(**settings), scorings)


def wait_until(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def trains(work: Work) -> bool:
    """It has trained, and has a long way to go."""
    return updates_done(work)[0] > 0


def process_of(work: Work) -> int:
    """The process that trains it."""
    return int((work.run / "lock").read_text().split()[1])


def kill(work: Work) -> tuple[int, int]:
    """Kill the process that trains it: the last checkpoint and the last update recorded."""
    os.kill(process_of(work), signal.SIGKILL)
    time.sleep(0.1)
    checkpoints = [int(path.name) for path in (work.run / "checkpoints").glob("[0-9]*")]
    return max(checkpoints, default=0), updates_done(work)[0]


def perform_directly(works: Sequence[Work]) -> None:
    """Train by `jobs.start` and score by `score`, without a launch, on one core."""
    program = """if True:
        import os, sys
        from pathlib import Path
        from sorl import platform
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        platform.prepare()
        from sorl import jobs
        from sorl.jobs.scoring import score
        from sorl.launch.work import Work
        for folder in sys.argv[1:]:
            work = Work.read(folder)
            run = jobs.start(work.run, work.algorithm, work.job, quiet=True)
            score(run, work.scorings, workers=1)
    """
    for one in works:
        one.write()
    command = [sys.executable, "-c", program, *(str(one.folder) for one in works)]
    subprocess.run(command, check=True, timeout=300)


def check_same_results(work: Work, other: Work) -> None:
    """Every number of two runs but those of a clock is the same."""
    assert (work.run / "metrics.csv").read_bytes() == (other.run / "metrics.csv").read_bytes()
    assert evaluations_without_clock(work.run) == evaluations_without_clock(other.run)
    assert scores_without_clock(work) == scores_without_clock(other) != []
    name = f"policy/task1-seed{work.job.seeds[0]}/policy.safetensors"
    assert (work.run / name).read_bytes() == (other.run / name).read_bytes()


def scores_without_clock(work: Work) -> list[dict[str, float | str]]:
    rows = scores(Run.open(work.run))
    return [
        {name: value for name, value in row.items() if name not in ("latency_ms", "act_ms")}
        for row in rows
    ]
