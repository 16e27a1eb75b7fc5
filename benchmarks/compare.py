"""Two commits measured in one run, in turn (A B A B ...), so that a noisy machine is no excuse.

    python -m benchmarks.compare HEAD~1 HEAD
    python -m benchmarks.compare 070d644 --algorithms sorl fql --rounds 3

Each commit is checked out into a folder of its own and runs the program below with its own `src`,
in this environment's packages. Both time the same updates, in one chunk. The ratio is that of
medians; it is called a change where all rounds of one are above all rounds of the other.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from benchmarks.training import NETWORKS

HERE = Path(__file__).resolve().parents[1]

# What runs inside a commit knows only what every commit had: training and its synthetic data.
PROGRAM = """
import ast, sys, time
from sorl import platform
platform.prepare()
import jax
from sorl import algorithms
from sorl.data.synthetic import synthetic
from sorl.training import train
name, hidden, seeds, updates = ast.literal_eval(sys.argv[1])
snapshots = train(algorithms.get(name)(hidden=hidden), synthetic(28, 5), seeds=range(seeds),
                  updates=10**9, chunk=updates)
jax.block_until_ready(next(snapshots).state)
began = time.perf_counter()
jax.block_until_ready(next(snapshots).state)
print(updates / (time.perf_counter() - began))
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compare."""

    before: tyro.conf.Positional[str]
    after: tyro.conf.Positional[str] = "HEAD"
    algorithms: tuple[str, ...] = ("sorl",)
    seeds: tuple[int, ...] = (1, 4)
    rounds: int = 4
    seconds: float = 8.0
    """Length of a measurement, roughly."""


def rate(checkout: Path, case: tuple[object, ...]) -> float:
    """Updates per second of a case in a checkout."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(case)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Check out, measure in turn, print a line a case."""
    arguments = tyro.cli(Arguments, description=__doc__)
    folder = Path(tempfile.mkdtemp())
    try:
        checkouts = []
        for name in (arguments.before, arguments.after):
            checkout = folder / str(len(checkouts))
            git = ["git", "-C", str(HERE), "worktree", "add", "--quiet", "--detach"]
            subprocess.run([*git, str(checkout), name], check=True)
            checkouts.append(checkout)
        print(f"{'algorithm':>10} {'network':>8} {'seeds':>5} {'before':>9} {'after':>9}  ratio")
        for name in arguments.algorithms:
            for hidden in NETWORKS:
                for seeds in arguments.seeds:
                    trial = rate(checkouts[0], (name, hidden, seeds, 2))
                    updates = max(2, round(arguments.seconds * trial))
                    case = (name, hidden, seeds, updates)
                    rates: tuple[list[float], list[float]] = ([], [])
                    for _ in range(arguments.rounds):
                        for found, checkout in zip(rates, checkouts, strict=True):
                            found.append(rate(checkout, case))
                    before, after = map(statistics.median, rates)
                    apart = min(rates[1]) > max(rates[0]) or max(rates[1]) < min(rates[0])
                    told = "a change" if apart else "within the noise"
                    if arguments.rounds == 1:
                        told = "one round tells no change from noise"
                    network = f"{len(hidden)} x {hidden[0]}"
                    print(
                        f"{name:>10} {network:>8} {seeds:>5} {before:>9.2f} {after:>9.2f}  "
                        f"{after / before:.3f}  {told}",
                        flush=True,
                    )
    finally:
        shutil.rmtree(folder)
        subprocess.run(["git", "-C", str(HERE), "worktree", "prune"], check=True)


if __name__ == "__main__":
    main()
