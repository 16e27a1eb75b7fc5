"""Theorem 2 of SORL measured: training regularizes to the behaviour at every step size.

The behaviour's flow is known in closed form (`mixtures`), so the errors that the theorem speaks of
can be measured (`measuring`) on networks that SORL's own losses trained (`training`), and the bound
that follows from them (`bound`, with its proof) stands beside the distance that it bounds
(`transport`). The sizes of it all are `settings`; `figure` and `summary` show what came out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorl.experiments.experiment import Experiment, Measurement
from sorl.experiments.theorem2.figure import draw
from sorl.experiments.theorem2.measuring import measure
from sorl.experiments.theorem2.settings import Setting, settings
from sorl.experiments.theorem2.summary import findings
from sorl.experiments.theorem2.training import flops
from sorl.experiments.theorem2.transport import library

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sorl.experiments.rows import Rows
    from sorl.experiments.scales import Scale

__all__ = ["EXPERIMENT", "Setting", "draw", "findings", "measure", "settings"]


def _check() -> None:
    library()


def _draw(rows: Rows, note: str) -> Figure:
    return draw(rows.rows, note)


def _size(scale: Scale) -> str:
    setting = settings(scale.name)[0]
    return (
        f"{scale.title}: {len(setting.hidden)} x {setting.hidden[0]} units, batch "
        f"{setting.batch_size}, {' / '.join(f'{n:,}' for n in setting.updates)} updates, learning "
        f"rate {setting.learning_rate:g}, {setting.samples:,} samples, two modes on every axis"
    )


def _findings(rows: Rows, scale: Scale) -> list[str]:
    return findings(rows.rows)


EXPERIMENT = Experiment(
    title="Theorem 2: regularization to the behaviour at every step size",
    published=(
        "W2 between the h-step policy and the behaviour is at most the sum of a discretisation, a "
        "flow-matching and a self-consistency term, for every h = 2^-κ. The constants here "
        "are ours."
    ),
    measurement=Measurement(lambda scale: settings(scale.name), measure, flops, _check),
    draw=_draw,
    size=_size,
    findings=_findings,
)
