"""The check of Theorem 2: training regularizes to the behaviour at every budget."""

from sorl.experiments.theorem2.measuring import measure
from sorl.experiments.theorem2.settings import Setting, settings

__all__ = ["Setting", "measure", "settings"]
