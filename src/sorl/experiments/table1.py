"""Table 1: every method on every environment, each at what it does by itself.

In how many steps and from how many candidates SORL acted in the paper's table is not known, so all
budgets of figures 1 and 2 stand below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sorl import algorithms
from sorl.data.names import NUMBER_OF_TASKS, default_task
from sorl.experiments import figure2, looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.figure1 import STEPS
from sorl.experiments.published_scores import DEFAULT_TASK, FIVE_TASKS, SOURCE, Published
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale
from sorl.report.statistics import bootstrap, interquartile_mean, performance_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    most = STEPS[-1]
    return [
        cell(
            scale,
            dataset,
            tasks,
            method,
            scorings=figure2.scorings(most, scale) if method == "sorl" else (),
        )
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


def _published(environment: str, tasks: list[float]) -> list[tuple[str, Mapping[str, Published]]]:
    """Published scores, each with what they are of: of these tasks first, then means of five."""
    found = []
    kind = what_tasks(environment, tasks)
    if kind.startswith("default") and environment in DEFAULT_TASK:
        found.append((kind, DEFAULT_TASK[environment]))
    if environment in FIVE_TASKS:
        found.append(("mean of five tasks", FIVE_TASKS[environment]))
    return found


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
        for of_what, published in _published(environment, tasks):
            cells = (str(published.get(method, "")) for method in METHODS)
            lines.append(f"| {environment}, {of_what}, *published* | {' | '.join(cells)} |")
    budgets = (f"{method.upper()} {algorithms.get(method).default_budget}" for method in METHODS)
    return "\n".join(
        [
            *lines,
            "",
            "Mean success over the last three evaluations, tasks and seeds, each method at its own "
            f"budget ({', '.join(budgets)}). *{SOURCE}; default tasks by a third party.* No score "
            "of SRPO, CAC, FAWAC or FBRAC is at hand, and of IFQL on half of the environments.",
            "",
            *_other_budgets(rows),
        ]
    )


def _other_budgets(rows: Rows) -> list[str]:
    """SORL at every budget that was scored of it."""
    most = STEPS[-1]
    ways = [(f"{k}x1", {"steps": k, "best_of": 1}) for k in STEPS]
    ways += [
        (f"{most}x{figure2.BEST_OF}, {name}", {"steps": most, "best_of": figure2.BEST_OF, **chosen})
        for name, chosen in ((str(c), {"choice": str(c)}) for c in figure2.CHOICES)
    ]
    lines = [f"| SORL | {' | '.join(name for name, _ in ways)} |", f"| --- |{' --- |' * len(ways)}"]
    for environment in rows.values("environment"):
        here = rows.where(environment=environment, method="sorl")
        values = (looks.percent_interval(here.where(**way).estimate()) for _, way in ways)
        kind = what_tasks(environment, here.values("task"))
        lines.append(f"| {environment}, {kind} | {' | '.join(values)} |")
    text = (
        "In how many steps and from how many candidates SORL acted in the published table is not "
        "known; `best` is the arg max of the critic, as in the paper."
    )
    return [*lines, "", text]


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
    whole = _whole(rows)
    # Eleven bands would hide each other.
    banded = {"sorl", max((m for m in whole if m != "sorl"), key=_success(whole), default="")}
    for place, method in enumerate(METHODS):
        if method not in whole:
            continue
        style = looks.Style.of(place)
        profile = performance_profile(whole[method].scores(), thresholds)
        every[-1].plot(
            100 * thresholds,
            100 * profile.value,
            color=style.color,
            linestyle=style.dash,
            linewidth=2.4 if method == "sorl" else 1.1,
            label=method.upper(),
        )
        if method in banded:
            band = 100 * profile.low, 100 * profile.high
            every[-1].fill_between(100 * thresholds, *band, color=style.color, alpha=0.15, lw=0)
    every[-1].set(xlabel="success above, %", ylabel="share of runs, %", ylim=(-3, 103))
    every[-1].legend(frameon=False, fontsize=6, ncols=2)
    return figure


def _whole(rows: Rows) -> dict[str, Rows]:
    """The methods that have a score of every task: statistics over fewer would be of others."""
    mine = {method: own_budget(rows, method) for method in METHODS}
    return {m: part for m, part in mine.items() if part and part.tasks() == rows.tasks()}


def _success(parts: Mapping[str, Rows]) -> Callable[[str], float]:
    return lambda method: float(parts[method].estimate().value)


def findings(rows: Rows, scale: Scale) -> list[str]:
    """The order here and, where it is known, the published one; SORL against each."""
    found = []
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        tasks = here.values("task")
        values = {m: float(own_budget(here, m).estimate().value) for m in METHODS}
        known = {method: value for method, value in values.items() if not np.isnan(value)}
        order = sorted(known, key=lambda method: -known[method])
        found.append(
            f"{environment}, {what_tasks(environment, tasks)}: "
            + ", ".join(f"{m.upper()} {looks.percent(round(known[m], 2))}" for m in order)
            + "."
        )
        for of_what, published in _published(environment, tasks):
            best = sorted(published, key=lambda method: -published[method].success)
            found.append(
                f"{environment}, {of_what}, published: "
                + ", ".join(f"{m.upper()} {published[m]}" for m in best)
                + "."
            )
    mine = _whole(rows)
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
        for method in METHODS
        if not own_budget(rows.where(environment=environment), method)
    ]
    if nothing:
        found.append(
            f"Without a score, and so left out of what is over all tasks: {', '.join(nothing)}."
        )
    return found


EXPERIMENT = Experiment(
    title="Table 1: eleven methods",
    published=(
        "Of the methods whose published scores are at hand (BC, IQL, ReBRAC, IDQL, FQL, and IFQL "
        "on four of the eight environments) SORL has the highest five-task mean on six "
        "environments; FQL is ahead on cube-double (29 to 25) and ReBRAC on antmaze-giant (26 to "
        "9)."
    ),
    cells=cells,
    draw=draw,
    table=table,
    findings=findings,
)
