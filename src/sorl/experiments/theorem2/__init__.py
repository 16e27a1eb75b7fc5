"""Theorem 2 of SORL measured: training regularizes to the behaviour at every step size.

The behaviour's flow is known in closed form (`mixtures`), so the errors that the theorem speaks of
can be measured (`measuring`) on networks that SORL's own losses trained (`training`), and the bound
that follows from them (`bound`, with its proof) stands beside the distance that it bounds
(`transport`). The sizes of it all are `settings`; `figure` and `summary` show what came out.
"""

from sorl.experiments.theorem2.figure import draw
from sorl.experiments.theorem2.measuring import measure
from sorl.experiments.theorem2.settings import Setting, settings
from sorl.experiments.theorem2.summary import findings

__all__ = ["Setting", "draw", "findings", "measure", "settings"]
