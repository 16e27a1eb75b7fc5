"""Table 1: every method on every environment, each at what it does by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sorl import algorithms
from sorl.data.names import NUMBER_OF_TASKS, default_task
from sorl.experiments import looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.published_scores import DEFAULT_TASK, FIVE_TASKS, SOURCE
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale
from sorl.report.statistics import bootstrap, interquartile_mean, performance_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = (
    *("bc", "iql", "rebrac"),  # Gaussian or deterministic
    *("idql", "srpo", "cac"),  # diffusion
    *("fawac", "fbrac", "ifql", "fql"),  # flow
    "sorl",  # shortcut
)
"""In the order of the paper's columns."""


def cells(scale: Scale) -> list[Cell]:
    """Each method on each environment."""
    return [
        cell(scale, dataset, tasks, method)
        for dataset, tasks in scale.table_environments.items()
        for method in METHODS
    ]


def own_budget(rows: Rows, method: str) -> Rows:
    """The rows of a method at its own budget."""
    budget = algorithms.get(method).default_budget
    return rows.where(method=method, steps=budget.steps, best_of=budget.best_of, choice="own")


def what_tasks(environment: str, tasks: list[float]) -> str:
    """Which tasks a mean is over: five-task means and default tasks are never mixed."""
    if len(tasks) == NUMBER_OF_TASKS:
        return "mean of five tasks"
    names = ", ".join(f"{task:g}" for task in sorted(tasks))
    default = tasks == [default_task(f"{environment}-v0")]
    return f"default task ({names})" if default else f"task {names}"


def table(rows: Rows, scale: Scale) -> str:
    """Success in percent with 95% intervals; what others published stands below, so marked."""
    lines = [
        f"| | {' | '.join(method.upper() for method in METHODS)} |",
        f"| --- |{' --- |' * len(METHODS)}",
    ]
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        tasks = here.values("task")
        values = (looks.percent_interval(own_budget(here, m).estimate()) for m in METHODS)
        kind = what_tasks(environment, tasks)
        lines.append(f"| **{environment}**, {kind} | {' | '.join(values)} |")
        five = len(tasks) == NUMBER_OF_TASKS
        published = (FIVE_TASKS if five else DEFAULT_TASK).get(environment, {})
        if published and (five or kind.startswith("default")):
            cells = (str(published.get(method, "")) for method in METHODS)
            lines.append(f"| {environment}, {kind}, *published* | {' | '.join(cells)} |")
        elif environment in FIVE_TASKS:
            cells = (str(FIVE_TASKS[environment].get(method, "")) for method in METHODS)
            lines.append(
                f"| {environment}, mean of five tasks, *published* | {' | '.join(cells)} |"
            )
    budgets = (f"{method.upper()} {algorithms.get(method).default_budget}" for method in METHODS)
    return "\n".join(
        [
            *lines,
            "",
            "Mean success over the last three evaluations, tasks and seeds, each method at its own "
            f"budget ({', '.join(budgets)}). *{SOURCE}; default tasks by a third party.*",
        ]
    )


def draw(rows: Rows, note: str) -> Figure:
    """All scores of one environment, and the performance profiles over all runs and tasks."""
    environments = rows.values("environment")
    figure, every = looks.panels([*environments, "all runs and tasks"], note)
    for axes, environment in zip(every, environments, strict=False):
        here = rows.where(environment=environment)
        for place, method in enumerate(METHODS):
            estimate = own_budget(here, method).estimate()
            looks.line(axes, [place], [estimate], position=int(method == "sorl"), label=method)
        axes.set_xticks(range(len(METHODS)), [m.upper() for m in METHODS], rotation=60, fontsize=7)
        looks.success_axis(axes)
    thresholds = np.linspace(0, 1, 51)
    for place, method in enumerate(METHODS):
        mine = own_budget(rows, method)
        if mine:
            style = looks.Style.of(place)
            profile = performance_profile(mine.scores(), thresholds, resamples=2)
            every[-1].plot(
                100 * thresholds,
                100 * profile.value,
                color=style.color,
                linestyle=style.dash,
                linewidth=2.4 if method == "sorl" else 1.1,
                label=method.upper(),
            )
    every[-1].set(xlabel="success above, %", ylabel="share of runs, %", ylim=(-3, 103))
    every[-1].legend(frameon=False, fontsize=6, ncols=2)
    return figure


def findings(rows: Rows, scale: Scale) -> list[str]:
    """The order here and, where it is known, the published one; SORL against each."""
    found = []
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        values = {m: float(own_budget(here, m).estimate().value) for m in METHODS}
        known = {method: value for method, value in values.items() if not np.isnan(value)}
        order = sorted(known, key=lambda method: -known[method])
        found.append(
            f"{environment}: "
            + ", ".join(f"{m.upper()} {looks.percent(round(known[m], 2))}" for m in order)
            + "."
        )
        published = FIVE_TASKS.get(environment, {})
        if published:
            best = sorted(published, key=lambda method: -published[method].success)
            found.append(
                f"{environment}, published order: "
                + ", ".join(f"{m.upper()} {published[m]}" for m in best)
                + "."
            )
    mine = {method: own_budget(rows, method) for method in METHODS}
    mine = {method: part for method, part in mine.items() if part}
    estimates = {m: bootstrap(part.scores(), interquartile_mean) for m, part in mine.items()}
    texts = (f"{m.upper()} {looks.percent_interval(value)}" for m, value in estimates.items())
    found.append(f"Interquartile means over all runs and tasks: {', '.join(texts)}.")
    if "sorl" in mine:
        chances = {m: mine["sorl"].better_than(part) for m, part in mine.items() if m != "sorl"}
        texts = (f"{m.upper()} {looks.percent_interval(chance)}" for m, chance in chances.items())
        found.append(
            f"SORL is better on a task drawn at random with probability: {', '.join(texts)}."
        )
    nothing = [
        f"{method.upper()} on {environment}"
        for environment in rows.values("environment")
        for method in mine
        if not own_budget(rows.where(environment=environment), method)
    ]
    if nothing:
        found.append(f"Diverged before it was evaluated: {', '.join(nothing)}.")
    stopped = rows.where(stopped=1).values("method")
    if stopped:
        found.append(f"Diverged, scored by their last good state: {', '.join(stopped)}.")
    return found


EXPERIMENT = Experiment(
    title="Table 1: eleven methods",
    published=(
        "SORL has the highest five-task mean on six of the eight environments; FQL is ahead on "
        "cube-double (29 to 25) and ReBRAC on antmaze-giant (26 to 9)."
    ),
    cells=cells,
    draw=draw,
    table=table,
    findings=findings,
)
