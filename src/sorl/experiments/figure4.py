"""Figure 4, ablation over M^BTT: the most steps through which the Q loss is backpropagated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorl.experiments import looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.figure1 import one_candidate
from sorl.experiments.figure2 import TRAINED
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cells(scale: Scale) -> list[Cell]:
    """SORL for every M^BTT."""
    return [
        cell(
            scale,
            dataset,
            tasks,
            "sorl",
            backprop_steps=trained,
            scorings=(one_candidate(scale),),
        )
        for dataset, tasks in scale.environments.items()
        for trained in TRAINED
    ]


def _ways(rows: Rows, trained: int) -> tuple[Rows, Rows]:
    """With one step, and with as many as were trained."""
    here = rows.where(backprop_steps=trained, best_of=1)
    return here.where(steps=1), here.where(steps=trained)


def draw(rows: Rows, note: str) -> Figure:
    """Success against M^BTT, in one step and in M^BTT steps."""
    environments = rows.values("environment")
    figure, every = looks.panels(environments, note)
    for axes, environment in zip(every, environments, strict=True):
        pairs = [_ways(rows.where(environment=environment), trained) for trained in TRAINED]
        for position, label in enumerate(("1 step", "M^BTT steps")):
            estimates = [pair[position].estimate() for pair in pairs]
            looks.line(axes, TRAINED, estimates, position=position, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(TRAINED, [str(trained) for trained in TRAINED])
        axes.set_xlabel("M^BTT, steps of backpropagation in training")
        looks.success_axis(axes)
    every[0].legend(title="at inference", frameon=False, fontsize=8)
    return figure


def findings(rows: Rows, scale: Scale) -> list[str]:
    """Whether a larger M^BTT is better."""
    found = []
    for environment in rows.values("environment"):
        pairs = [_ways(rows.where(environment=environment), trained) for trained in TRAINED]
        for position, label in enumerate(("1 step", "M^BTT steps")):
            parts = [pair[position] for pair in pairs]
            values = ", ".join(looks.percent_interval(part.estimate()) for part in parts)
            better = parts[-1].better_than(parts[0])
            found.append(
                f"{environment}, {label} at inference: {values} for M^BTT = "
                f"{', '.join(map(str, TRAINED))} {looks.of_last(parts)}. "
                f"M^BTT = {TRAINED[-1]} beats {TRAINED[0]} with probability "
                f"{looks.percent_interval(better)}."
            )
    return found


EXPERIMENT = Experiment(
    title="Figure 4: ablation over the steps of backpropagation",
    published="Success rises with M^BTT, both with M^inf = 1 and with M^inf = M^BTT.",
    cells=cells,
    draw=draw,
    findings=findings,
)
