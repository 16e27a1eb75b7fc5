"""Figure 1, sequential scaling: one policy, trained once, acts in more and more steps."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from sorl.experiments import looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale
from sorl.jobs.scoring import Scoring
from sorl.report.results import LAST
from sorl.types import Budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = (1, 2, 4, 8)
"""M^inf of the figures, up to M^disc."""


def one_candidate(scale: Scale) -> Scoring:
    """Every number of steps with one candidate, at the last three evaluations."""
    return Scoring(tuple(Budget(k, 1) for k in STEPS), milestones=LAST, episodes=scale.episodes)


def cells(scale: Scale) -> list[Cell]:
    """SORL as it is, M^disc = M^BTT = 8."""
    return [
        cell(scale, dataset, tasks, "sorl", scorings=(one_candidate(scale),))
        for dataset, tasks in scale.environments.items()
    ]


def draw(rows: Rows, note: str) -> Figure:
    """Success against M^inf, one panel an environment."""
    environments = rows.values("environment")
    figure, every = looks.panels(environments, note)
    for axes, environment in zip(every, environments, strict=True):
        here = rows.where(environment=environment, best_of=1)
        estimates = [here.where(steps=k).estimate() for k in STEPS]
        looks.line(axes, STEPS, estimates, position=0, label="SORL")
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(k) for k in STEPS])
        axes.set_xlabel("sampling steps at inference")
        looks.success_axis(axes)
    return figure


def findings(rows: Rows, scale: Scale) -> list[str]:
    """Whether success rises with the steps, and how sure that is."""
    found = []
    for environment in rows.values("environment"):
        here = rows.where(environment=environment, best_of=1)
        parts = [here.where(steps=k) for k in STEPS]
        values = ", ".join(looks.percent_interval(part.estimate()) for part in parts)
        means = [float(part.estimate().value) for part in parts]
        rises = sum(after > before for before, after in itertools.pairwise(means))
        better = parts[-1].better_than(parts[0])
        found.append(
            f"{environment}: {values} with {', '.join(map(str, STEPS))} steps "
            f"{looks.of_last(parts)}: it rises at {rises} of {len(STEPS) - 1} doublings. A run "
            f"with {STEPS[-1]} steps is better than one with {STEPS[0]} with probability "
            f"{looks.percent_interval(better)}."
        )
    return found


EXPERIMENT = Experiment(
    title="Figure 1: sequential scaling",
    published="With M^disc = M^BTT = 8 fixed, success rises with M^inf in 1, 2, 4, 8.",
    cells=cells,
    draw=draw,
    findings=findings,
)
