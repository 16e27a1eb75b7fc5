"""One run's policies, their compute spent in many ways: what succeeds, and what it costs.

    python examples/test_time_compute.py RUN OUT.csv --episodes 30

One row for every way and member; rows that OUT.csv has already are not rolled out again, so the
same command goes on where it was stopped, and measures all times anew at its end: run it once more
on an idle machine. Adaptive ways need `sorl calibrate RUN` before, for its thresholds.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from sorl import files, tables
from sorl.choices import Choice
from sorl.console import show_progress
from sorl.deployment.measuring import latencies
from sorl.deployment.policy import Policy, load_stacked
from sorl.evaluation import Evaluator
from sorl.inference import Adaptive, Strategy
from sorl.runs import Run
from sorl.types import Budget
from sorl.verifiers import Verifier

CHOICES = ("best", "softmax-1.0", "typical-2", "central")


def main(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    budgets: tuple[str, ...] | None = None,
    episodes: int = 30,
    seed: int = 7,
    calls: int = 200,
) -> None:
    """Roll out and time.

    Args:
        run: folder of the run.
        out: table to make or to complete.
        budgets: only the ways with one of these budgets.
        episodes: episodes for each way, task and seed.
        seed: seed of the episodes.
        calls: timed calls of each way.
    """
    opened = Run.open(run)
    policies, members = load_stacked(run)
    policy = Policy.load(run)
    ways = [way for way in ways_of(policy) if budgets is None or str(way[0]) in budgets]
    rows: list[dict[str, Any]] = list(tables.read_rows(out)) if out.exists() else []
    done = {name(row) for row in rows}
    with Evaluator(opened.config["environment"]) as evaluator, show_progress() as on_progress:
        for place, (budget, strategy) in enumerate(ways):
            if name(row_of(budget, strategy)) in done:
                continue
            results = evaluator.evaluate(
                policies, members, budgets=[budget], strategy=strategy, episodes=episodes, seed=seed
            )
            for result in results:
                rows.append(
                    {
                        "update": policy.update,
                        **row_of(budget, strategy),
                        "task": result.member.task,
                        "seed": result.member.seed,
                        "episodes": episodes,
                        "success": result.success,
                        "length": result.length,
                        "candidates": result.candidates,
                        "p50_ms": float("nan"),
                        "p99_ms": float("nan"),
                    }
                )
            write(out, rows)
            on_progress(place + 1, len(ways))
    timed = [way for way in ways if way[1].adaptive is None]
    with show_progress("timing") as on_progress:
        taken = latencies(policy, timed, [1], calls=calls, on_progress=on_progress)[:, 0]
    for way, milliseconds in zip(timed, taken, strict=True):
        for row in rows:
            if name(row) == name(row_of(*way)):
                row["p50_ms"], row["p99_ms"] = map(float, np.percentile(milliseconds, [50, 99]))
    write(out, rows)
    print(f"wrote {out}")


def ways_of(policy: Policy) -> list[tuple[Budget, Strategy]]:
    """Budgets and how each is spent."""
    ways = [(Budget(steps, 1), Strategy()) for steps in (1, 2, 4, 8, 16)]
    for budget in ("1x8", "4x8", "8x8", "8x32"):
        ways += [
            (Budget.parse(budget), Strategy(choice=Choice.parse(choice))) for choice in CHOICES
        ]
    ways += [
        (Budget(8, n), Strategy(choice=Choice.parse(choice)))
        for n in (2, 4)
        for choice in ("best", "typical-2", "central")
    ]
    best = Choice("best")
    ways += [
        (Budget(8, 8), Strategy(verifier=Verifier("min"), choice=best)),
        (Budget(8, 8), Strategy("spread", choice=best)),
        (Budget(8, 8), Strategy("spread", choice=Choice("central"))),
        (Budget(8, 8), Strategy("renoise", choice=best)),
        (Budget(8, 8), Strategy("renoise", choice=Choice("typical", 2))),
    ]
    if policy.calibration is not None:
        # A quarter everywhere and the rest in half of the states: beside them, as many in all.
        for choice in (Choice("typical", 2), Choice("central")):
            for most, as_many in ((8, 5), (32, 20)):
                threshold = policy.calibration.threshold(Budget(8, most))
                adaptive = Strategy(choice=choice, adaptive=Adaptive(threshold))
                ways += [(Budget(8, most), adaptive), (Budget(8, as_many), Strategy(choice=choice))]
    return ways


def row_of(budget: Budget, strategy: Strategy) -> dict[str, Any]:
    """The columns that tell one way from another."""
    return {
        "budget": str(budget),
        "sampler": strategy.sampler,
        "verifier": str(strategy.verifier),
        "choice": str(strategy.choice),
        "adaptive": "no" if strategy.adaptive is None else "yes",
    }


def name(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is a row of."""
    return tuple(row[column] for column in ("budget", "sampler", "verifier", "choice", "adaptive"))


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(out, text.getvalue())


if __name__ == "__main__":
    tyro.cli(main)
