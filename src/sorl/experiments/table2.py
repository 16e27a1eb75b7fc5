"""Table 2: the same runs as table 1, task by task."""

from __future__ import annotations

from sorl.data.names import NUMBER_OF_TASKS
from sorl.experiments import looks
from sorl.experiments.experiment import Experiment
from sorl.experiments.rows import Rows
from sorl.experiments.scales import PAPER_ENVIRONMENTS, Scale
from sorl.experiments.table1 import METHODS, cells, own_budget


def table(rows: Rows, scale: Scale) -> str:
    """Success in percent with 95% intervals over seeds, a line for each task."""
    lines = [
        f"| | {' | '.join(method.upper() for method in METHODS)} |",
        f"| --- |{' --- |' * len(METHODS)}",
    ]
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        for task in sorted(here.values("task")):
            part = here.where(task=task)
            values = (looks.percent_interval(own_budget(part, m).estimate()) for m in METHODS)
            lines.append(f"| {environment}, task {task:g} | {' | '.join(values)} |")
    count = len(PAPER_ENVIRONMENTS) * NUMBER_OF_TASKS
    return "\n".join(
        [
            *lines,
            "",
            f"Mean success over the last three evaluations and all seeds: {len(rows.tasks())} "
            f"task(s) at this scale, {count} in the paper.",
        ]
    )


EXPERIMENT = Experiment(
    title="Table 2: task by task",
    published="All 40 tasks of table 1; its values by task are not at hand.",
    cells=cells,
    table=table,
)
