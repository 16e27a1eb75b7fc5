"""`sorl calibrate RUN`: what each budget costs on this machine and what it buys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from sorl.deployment.calibration import Calibration


def run(arguments: list[str]) -> None:
    """Parse and calibrate."""
    tyro.cli(_calibrate, prog="sorl calibrate", args=arguments)


def _calibrate(
    run: tyro.conf.Positional[Path],
    budgets: tuple[str, ...] | None = None,
    rows: tuple[int, ...] = (1,),
    calls: int = 500,
    episodes: int = 20,
    states: int = 256,
    data: Path | None = None,
    sampler: Literal["independent", "spread", "renoise"] = "independent",
    verifier: str = "own",
    choices: tuple[str, ...] = ("central", "typical-2", "best"),
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Measure every budget of a run's policies and keep the table beside each of them.

    Latency is that of `Policy.act` on this machine, which should be idle; success comes from
    rollouts, pooled over the seeds of a task; what the critic believes comes from held-out states.
    Neither of the two depends on the machine: on the one that will act, --episodes 0 measures the
    latencies anew and keeps the success rates, and without data also what the critic believes.
    Afterwards `Policy.act(observation, deadline_ms=3.0)` spends the best budget that fits.

    Args:
        run: folder of the run.
        budgets: budgets to measure; without it 1, 2, 4 and 8 steps with 1, 8 and 32 candidates
            each, as far as the policy can serve them.
        rows: numbers of observations of one call to measure latencies for, besides 1.
        calls: timed calls for each budget and number of rows.
        episodes: rollouts for each budget, task and seed; 0 for none, then the success rates stay
            that the last calibration found with the same budget, choice, sampler and verifier; as
            long as one is missing, a deadline buys steps but never candidates.
        states: held-out states.
        data: file to take them from; without it the run's validation data, or its training data;
            where there are none, what the critic believes stays as the last calibration found it
            with the same budget, choice, sampler and verifier.
        sampler: how candidates are drawn.
        verifier: how the critic's heads are combined.
        choices: how one of several candidates is chosen; each is tried.
        seed: seed of the episodes and of the states.
        workers: processes that step environments; without it one a core.
    """
    from sorl.choices import Choice
    from sorl.console import show_progress
    from sorl.deployment.calibration import named
    from sorl.jobs.calibration import calibrate, held_out_file, states_of
    from sorl.runs import Run
    from sorl.types import Budget
    from sorl.verifiers import Verifier

    wanted = None if budgets is None else [Budget.parse(text) for text in budgets]
    opened = Run.open(run)
    file = held_out_file(opened) if data is None else data
    if file is None:
        print(
            "No data are there to draw held-out states from: what the critic believes stays as the "
            "last calibration found it, if it did."
        )
    # Locked from the beginning: training on would replace what is being measured.
    with opened.locked():
        found = calibrate(
            opened,
            budgets=wanted,
            choices=[Choice.parse(text) for text in choices],
            sampler=sampler,
            verifier=Verifier.parse(verifier),
            rows=rows,
            calls=calls,
            episodes=episodes,
            observations=None if file is None else states_of(opened, file, states, seed),
            seed=seed,
            workers=workers,
            progress=show_progress,
        )
    told = set()
    for member, calibration in found.items():
        # Members of one task share everything but their critic's beliefs.
        if member.task not in told:
            told.add(member.task)
            _print(calibration, f"{run}, task {member.task} (belief of seed {member.seed}):")
    origins = (calibration.successes_from for calibration in found.values())
    for of in dict.fromkeys(f"{o['created']} on {named(o['machine'])}" for o in origins if o):
        print(f"Without rollouts the success rates are those of the calibration of {of}.")
    print(
        "Kept beside each policy: `sorl.Policy.load(...).act(observation, deadline_ms=3.0)` spends "
        "the best budget that fits."
    )


def _print(calibration: Calibration, title: str) -> None:
    """One line a budget, then whatever candidates make worse."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table()
    for name in ("steps x best-of", "choice", *(f"p50, p99 ms for {n}" for n in calibration.rows)):
        table.add_column(name, justify="right" if name.startswith("p50") else "left")
    table.add_column("success", justify="right")
    table.add_column("critic believes", justify="right")
    for entry in calibration.measured:
        times = zip(entry.p50_ms, entry.p99_ms, strict=True)
        table.add_row(
            str(entry.budget),
            str(entry.choice) if entry.budget.best_of > 1 else "",
            *(f"{p50:.2f}  {p99:.2f}" for p50, p99 in times),
            f"{entry.success:.0%} of {entry.episodes}" if entry.episodes else "",
            "" if entry.gain is None else f"{entry.gain:+.2f}",
        )
    console.print(title, soft_wrap=not console.is_terminal, markup=False)
    console.print(table)
    for sentence in calibration.harmful():
        print(f"warning: {sentence}")
