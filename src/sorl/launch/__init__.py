"""Launch many runs: on this machine, on a Ray cluster, or as a SLURM array.

Each is a `Work` with a folder of its own, done by the same code wherever it runs, so that it gives
the same scores; done again, it goes on where it was.
"""

from sorl.launch.work import Work

__all__ = ["Work"]
