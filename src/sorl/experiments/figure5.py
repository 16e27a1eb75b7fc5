"""Figure 5, size of the policy: only its hidden layers change; the critic stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorl.experiments import looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("sorl", "fql")


def cells(scale: Scale) -> list[Cell]:
    """SORL (M^BTT = 8, 4 steps at inference: its own budget) and FQL at every size."""
    return [
        # At a scale whose fewer seeds are all seeds, a policy of the usual size is the usual run.
        cell(
            scale,
            dataset,
            tasks,
            method,
            seeds=scale.fewer_seeds,
            actor_hidden=() if size == scale.hidden else size,
        )
        for dataset, tasks in scale.environments.items()
        for method in METHODS
        for size in scale.actor_sizes
    ]


def _own_budget(rows: Rows, method: str) -> Rows:
    return rows.where(method=method, steps=4 if method == "sorl" else 1, best_of=1)


def draw(rows: Rows, note: str) -> Figure:
    """Success against the width of the policy's layers."""
    environments = rows.values("environment")
    figure, every = looks.panels(environments, note)
    for axes, environment in zip(every, environments, strict=True):
        here = rows.where(environment=environment)
        for position, method in enumerate(METHODS):
            mine = _own_budget(here, method)
            widths = sorted(mine.values("actor_width"))
            estimates = [mine.where(actor_width=width).estimate() for width in widths]
            looks.line(axes, widths, estimates, position=position, label=method.upper())
            axes.set_xscale("log", base=2)
            axes.set_xticks(widths, [f"{width:g}" for width in widths])
        axes.set_xlabel("units of each hidden layer of the policy")
        looks.success_axis(axes)
    every[0].legend(frameon=False, fontsize=8)
    return figure


def findings(rows: Rows, scale: Scale) -> list[str]:
    """What each method gains from a larger policy, and which is better at each size."""
    found = []
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        mine = {method: _own_budget(here, method) for method in METHODS}
        widths = sorted(mine["sorl"].values("actor_width"))
        names = ", ".join(f"{width:g}" for width in widths)
        for method in METHODS:
            parts = [mine[method].where(actor_width=width) for width in widths]
            texts = ", ".join(looks.percent_interval(part.estimate()) for part in parts)
            found.append(
                f"{environment}, {method.upper()}: {texts} with {names} units "
                f"{looks.of_last(parts)}."
            )
        for width in widths:
            pair = [mine[method].where(actor_width=width) for method in METHODS]
            if all(pair):
                better = pair[0].better_than(pair[1])
                found.append(
                    f"{environment}, {width:g} units: SORL beats FQL with probability "
                    f"{looks.percent_interval(better)}."
                )
    return found


EXPERIMENT = Experiment(
    title="Figure 5: size of the policy",
    published=(
        "SORL (M^BTT = 8, M^inf = 4) and FQL, only the hidden sizes of the policy vary, 5 seeds; "
        "the paper's values are not at hand."
    ),
    cells=cells,
    draw=draw,
    findings=findings,
)
