"""The paper's figures and tables: one short file each, a grid, a call and a plot.

`sorl.experiments.reproduce` makes them; a file whose name stands in `TARGETS` is one of them.
"""

from __future__ import annotations

import importlib

from sorl.errors import InputError
from sorl.experiments.experiment import Experiment

TARGETS = {
    "figure1": "figure1",
    "figure2": "figure2",
    "figure3": "figure3",
    "figure4": "figure4",
    "figure5": "figure5",
    "table1": "table1",
    "table2": "table2",
    "tables3-5": "tables3to5",
    "theorem2": "theorem2",
}
"""What `sorl reproduce` accepts, beside `all`, and the module of each."""


def experiment(target: str) -> Experiment:
    """The experiment of a target.

    Raises:
        InputError: there is none of that name.
    """
    if target not in TARGETS:
        raise InputError(
            f"There is no {target!r} to reproduce: choose {', '.join(TARGETS)} or all."
        )
    return importlib.import_module(f"{__name__}.{TARGETS[target]}").EXPERIMENT
