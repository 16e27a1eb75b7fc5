"""`sorl compare ALGORITHM ...`: several algorithms on the same data, one run for each of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sorl import algorithms
from sorl.algorithm import AbstractAlgorithm
from sorl.cli.train import Options
from sorl.cli.values import read_value
from sorl.data.names import EnvironmentName
from sorl.errors import InputError
from sorl.jobs.comparison import Score, compare, write_table
from sorl.jobs.grid import points_of_algorithms, run_queue
from sorl.own_names import is_own
from sorl.report.page import write_report
from sorl.report.results import LAST
from sorl.types import Budget


def run(arguments: list[str]) -> None:
    """Parse and compare."""
    tyro.cli(_compare, prog="sorl compare", args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def _compare(
    algorithm: tyro.conf.Positional[tuple[str, ...]],
    out: Path,
    options: Annotated[Options, tyro.conf.arg(name="")],
    hidden: tuple[int, ...] = (),
    learning_rate: float | None = None,
    set: tyro.conf.UseAppendAction[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="ALGORITHM.FIELD=VALUE")]
    ] = (),
    budgets: tuple[str, ...] = (),
) -> None:
    """Train several algorithms on the same data, with the same seeds, updates and network.

    Each algorithm has the published hyperparameters of the environment, or its defaults, where
    nothing else is said here. They are trained one after the other, each into an ordinary run in
    the folder, and the same command goes on where it stopped.

    Args:
        algorithm: names of the algorithms; `all` means every one.
        out: folder of the runs, of compare.csv and of report.html.
        hidden: sizes of the hidden layers, the same for all; without it each algorithm's own.
        learning_rate: the same for all; without it each algorithm's own.
        set: a hyperparameter of one algorithm, such as fql.distillation_coef=100.
        budgets: evaluated beside each algorithm's own budget, where its policy can serve them.
        options: what to train.
    """
    names = algorithms.names() if algorithm == ("all",) else list(algorithm)
    chosen = [algorithms.get(name) for name in names]
    values = _own_values(names, set)
    shared = {"hidden": hidden, "learning_rate": learning_rate}
    shared = {field: value for field, value in shared.items() if value not in ((), None)}
    built = [
        _built(name, kind, options.env, shared, values.get(name, {}))
        for name, kind in zip(names, chosen, strict=True)
    ]
    points = points_of_algorithms(built, list(map(Budget.parse, budgets)))
    job = options.job(points[0].budgets or ())
    ended = run_queue(out, points, job)
    if ended:
        scores = compare(out, ended, job)
        write_table(out / "compare.csv", scores)
        _print(scores)
    if len(ended) < len(points):
        print(f"{len(ended)} of {len(points)} algorithms have ended; the same command goes on.")
        return
    page = write_report([out / point.name for point in points], out / "report.html")
    print(f"wrote {out / 'compare.csv'} and {page}")


def _built(
    name: str,
    kind: type[AbstractAlgorithm[Any]],
    environment: str | None,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
) -> AbstractAlgorithm[Any]:
    """An algorithm with the environment's preset, what all share and its own values, in turn."""
    preset = {}
    if environment is not None and not is_own(environment):  # others have no published values
        preset = algorithms.preset(name, EnvironmentName.parse(environment).dataset)
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    missing = [field for field in shared if field not in known]
    if missing:
        raise InputError(
            f"{name} has no hyperparameter {missing[0]!r}, which all shall share: leave out the "
            "option or the algorithm."
        )
    return kind(**{**preset, **shared, **own})


def _own_values(names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The hyperparameters that --set gives, by algorithm."""
    values: dict[str, dict[str, Any]] = {}
    for text in given:
        target, equals, value = text.partition("=")
        name, dot, field = target.strip().replace("-", "_").partition(".")
        if not (equals and dot and value.strip()):
            raise InputError(
                f"--set {text!r} cannot be read: write an algorithm, a dot, a hyperparameter, = "
                "and its value, for example fql.distillation_coef=100."
            )
        if name not in names:
            raise InputError(f"--set {text!r} is of no use: {name!r} is not compared here.")
        kind = algorithms.get(name)
        known = [entry.name for entry in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
        if field not in known:
            raise InputError(
                f"--set {text!r}: {name} has no hyperparameter {field!r}, it has "
                f"{', '.join(known)}."
            )
        if field in values.setdefault(name, {}):
            raise InputError(f"--set names {name}.{field} twice: give it once.")
        values[name][field] = read_value("--set", kind, field, value)
    return values


def _print(scores: Sequence[Score]) -> None:
    """One line for each algorithm and budget, then what the numbers are."""
    few = all(math.isnan(score.success_of_last) for score in scores)
    last = "success" if few else f"mean of last {LAST}"
    table = Table(box=SIMPLE_HEAD)
    table.add_column("algorithm")
    for head in ("budget", "success", *[last] * (not few), "95% interval", "return", "ms"):
        table.add_column(head, justify="right")
    for score in scores:
        of_last = [] if few else [_percent(score.success_of_last)]
        interval = f"{_percent(score.low)} to {_percent(score.high)}"
        table.add_row(
            score.point.name,
            f"{score.budget}{' *' if score.own else '  '}",
            _percent(score.success),
            *of_last,
            "-" if math.isnan(score.low) else interval,
            "-" if math.isnan(score.mean_return) else f"{score.mean_return:.1f}",
            "-" if math.isnan(score.latency_ms) else f"{score.latency_ms:.2f}",
        )
    Console(width=10_000, highlight=False).print(table)
    first = scores[0]
    print(
        f"small-scale: {first.seeds} seed(s), {first.tasks} task(s), {first.updates:,} updates, "
        f"{max(score.episodes for score in scores):,} episodes in one evaluation of a budget."
    )
    print(f"* the algorithm's own budget. The interval is a bootstrap over seeds of the {last}.")
    for scored, what in (
        (True, "Members that diverged, scored by their last good state"),
        (False, "Diverged before the end, so without a score"),
    ):
        stopped = [
            f"{score.point.name} ({score.stopped})"
            for score in scores
            if score.stopped and scored != math.isnan(score.success)
        ]
        if stopped:
            print(f"{what}: {', '.join(dict.fromkeys(stopped))}.")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
