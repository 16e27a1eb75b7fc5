"""`sorl tune ALGORITHM`: try a small grid of hyperparameters, one run for each of its points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sorl.algorithm import AbstractAlgorithm
from sorl.cli.train import Command, Options, prepared, run_for_algorithm
from sorl.cli.values import read_value
from sorl.errors import InputError
from sorl.inference import servable_budgets
from sorl.jobs.comparison import Score, compare, write_table
from sorl.jobs.grid import MOST_POINTS, Point, points_of, run_queue, text
from sorl.report.page import write_report
from sorl.report.results import LAST
from sorl.types import Budget

_USAGE = """\
usage: sorl tune ALGORITHM --env NAME [--data FILE] --grid FIELD=VALUE,VALUE ... --out FOLDER ...

Try a small grid of hyperparameters, for example --grid learning_rate=1e-4,3e-4 --grid
discount=0.99,0.995. Each point is an ordinary run in FOLDER; they are trained one after the other,
and the same command goes on where it stopped. `sorl tune ALGORITHM --help` tells all options."""


def run(arguments: list[str]) -> None:
    """Parse and tune."""
    run_for_algorithm("tune", _USAGE, _command, arguments)


def _command(default: AbstractAlgorithm[Any]) -> Command:
    def command(
        out: Path,
        options: Options,
        grid: tyro.conf.UseAppendAction[
            Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,VALUE")]
        ] = (),
        budgets: tuple[str, ...] | None = None,
        algorithm: AbstractAlgorithm[Any] = default,
    ) -> None:
        values = _parsed(grid, default)
        for name in values:
            if getattr(algorithm, name, None) != getattr(default, name, None):
                raise InputError(f"{name} is given twice: leave out its option or its --grid.")
        points = points_of(algorithm, values)
        _tune(out, points, options, None if budgets is None else map(Budget.parse, budgets))

    return prepared(
        command,
        default,
        f"""Train {type(default).__name__} at every point of a grid of hyperparameters.

    Hyperparameters are constants of the compiled program, so the points are a queue of runs; the
    tasks and seeds of one point train together.

    Args:
        out: folder of the runs, of tune.csv and of report.html.
        grid: values, such as discount=0.99,0.995 or hidden=8x8,16x16; at most {MOST_POINTS}
            points.""",
    )


def _tune(
    out: Path,
    points: Sequence[Point],
    options: Options,
    budgets: Iterable[Budget] | None,
) -> None:
    if budgets is None:  # those that every point can serve, so that all can be compared
        served = [set(servable_budgets(point.algorithm)) for point in points]
        budgets = sorted(set.intersection(*served))
    job = options.job(budgets)
    ended = run_queue(out, points, job)
    scores = compare(out, ended, job)
    if ended:
        write_table(out / "tune.csv", scores)
        _print(scores)
    if len(ended) < len(points):
        print(f"{len(ended)} of {len(points)} points have ended; the same command goes on.")
        return
    page = write_report([out / point.name for point in points], out / "report.html")
    print(f"wrote {out / 'tune.csv'} and {page}")


def _parsed(grid: Sequence[str], algorithm: AbstractAlgorithm[Any]) -> dict[str, list[Any]]:
    """The values of each hyperparameter; an unknown one's stay text, `points_of` refuses it."""
    parsed: dict[str, list[Any]] = {}
    for given in grid:
        name, equals, values = given.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not all(value.strip() for value in values.split(",")):
            raise InputError(
                f"--grid {given!r} cannot be read: write a hyperparameter, = and its values, for "
                "example discount=0.99,0.995."
            )
        if name in parsed:
            raise InputError(f"--grid names {name} twice: give all of its values at once.")
        parsed[name] = [
            read_value("--grid", type(algorithm), name, value) for value in values.split(",")
        ]
    return parsed


def _print(scores: Sequence[Score]) -> None:
    """One line a point."""
    table = Table(box=SIMPLE_HEAD)
    first = scores[0]
    budgets = list(dict.fromkeys(score.budget for score in scores))
    stopped = any(score.stopped for score in scores)
    heads = [f"{budget} {what}" for budget in budgets for what in ("success", "return")]
    for head in [*first.point.values, *heads, *["stopped"] * stopped]:
        table.add_column(head, justify="right")
    for start in range(0, len(scores), len(budgets)):
        line = scores[start : start + len(budgets)]
        cells = [text(value) for value in line[0].point.values.values()]
        for score in line:
            star = " *" if score.best else ""
            cells.append(_cell("{:.0%}", score.success, score.success_of_last) + star)
            cells.append(_cell("{:.1f}", score.mean_return, score.return_of_last))
        if stopped:
            cells.append(f"{line[0].stopped} of {first.tasks * first.seeds}")
        table.add_row(*map(Text, cells))
    # As wide as it must be: a narrow terminal breaks the lines, and no number is left out.
    Console(width=10_000, highlight=False).print(table)
    console = Console(highlight=False)
    for sentence in _notes(scores):
        console.print(sentence, soft_wrap=not console.is_terminal, markup=False)


def _notes(scores: Sequence[Score]) -> list[str]:
    """What the table's numbers are, and how far they go."""
    first = scores[0]
    members = f"{_count(first.tasks, 'task')} x {_count(first.seeds, 'seed')}"
    episodes = _count(max(score.episodes for score in scores), "episode")
    notes = [
        f"small-scale: {_count(first.seeds, 'seed')}, {_count(first.updates, 'update')}",
        f"Means over {members} after the last update: {episodes} at each point and budget.",
    ]
    few = all(math.isnan(score.success_of_last) for score in scores)
    if few:
        notes.append(
            f"No mean over the last {LAST} evaluations, for there were fewer: a smaller "
            "--evaluate-every makes more."
        )
    else:
        notes.append(f"In brackets the mean over the last {LAST} evaluations.")
    if any(score.stopped for score in scores):
        notes.append("Stopped: tasks and seeds that diverged, scored by their last good state.")
    if any(score.best for score in scores):
        measure = "success" if few else "success in brackets"
        notes.append(
            f"* best at its budget by {measure}, then by return: chosen after seeing the scores, "
            "hence a little flattering; confirm it with more seeds."
        )
    else:
        notes.append("No point is better than another.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _cell(form: str, value: float, of_last: float) -> str:
    if math.isnan(value):
        return "-"
    return form.format(value) + ("" if math.isnan(of_last) else f" ({form.format(of_last)})")
