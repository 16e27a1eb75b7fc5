"""How large an experiment is: the paper's size, an hour of a GPU, or half an hour of two cores.

The name of the scale stands on everything that is made of it. Only `paper` is the paper's
experiment; the others ask the same question of smaller networks, fewer updates and fewer tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from sorl.arithmetic import Arithmetic
from sorl.data.names import NUMBER_OF_TASKS, default_task
from sorl.errors import InputError

PAPER_ENVIRONMENTS = (
    "antmaze-large-navigate-v0",
    "antmaze-giant-navigate-v0",
    "humanoidmaze-medium-navigate-v0",
    "humanoidmaze-large-navigate-v0",
    "antsoccer-arena-navigate-v0",
    "cube-single-play-v0",
    "cube-double-play-v0",
    "scene-play-v0",
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of every experiment.

    Attributes:
        name: what it is called at the command line and on figures.
        environments: data sets of the figures, with the tasks that are trained of each.
        table_environments: those of the tables.
        updates: gradient updates of a run.
        evaluate_every: updates between two evaluations; the last three are averaged.
        batch_size: rows of one batch.
        hidden: hidden layers of every network, unless the experiment is about them.
        actor_sizes: hidden layers of the policy in the experiment that is about them.
        learning_rate: the same for all algorithms; None means each algorithm's own.
        seeds: seeds of a run.
        fewer_seeds: seeds where the paper took fewer: run time and network size.
        episodes: episodes for each budget, task and seed in one evaluation.
        generated: episodes of the data sets that are made here where they are missing; None takes
            the published files, downloaded where they are missing.
        chosen: hyperparameters by data set and algorithm where none are published, and what was
            found to need another value at this size.
        arithmetic: in which numbers networks are multiplied in training, see `sorl.arithmetic`.
        only: the data sets that it was narrowed to, see `narrowed`; empty means all.
    """

    name: str
    environments: Mapping[str, tuple[int, ...]]
    table_environments: Mapping[str, tuple[int, ...]]
    updates: int
    evaluate_every: int
    batch_size: int
    hidden: tuple[int, ...]
    actor_sizes: tuple[tuple[int, ...], ...]
    learning_rate: float | None
    seeds: int
    fewer_seeds: int
    episodes: int
    generated: int | None
    chosen: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    arithmetic: Arithmetic = "float32"
    only: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name, and whether it is smaller than the paper's."""
        return f"scale {self.name}{'' if self.name == 'paper' else ' (small-scale)'}"

    def narrowed(self, names: Collection[str]) -> Scale:
        """The same scale with some of its data sets alone; no names means all.

        Raises:
            InputError: a name is none of its data sets.
        """
        if not names:
            return self
        every = {**self.environments, **self.table_environments}
        for name in names:
            if name not in every:
                raise InputError(
                    f"Scale {self.name} has no data set {name!r}: choose of {', '.join(every)}."
                )

        def some(tasks: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
            return {name: numbers for name, numbers in tasks.items() if name in names}

        return dataclasses.replace(
            self,
            environments=some(self.environments),
            table_environments=some(self.table_environments),
            only=tuple(name for name in every if name in names),
        )

    def describe(self) -> str:
        """What it is, in one line for a figure."""
        layers = f"{len(self.hidden)} x {self.hidden[0]}"
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        data = (
            "published data"
            if self.generated is None
            else f"{self.generated:,} episodes of data generated here"
        )
        numbers = "" if self.arithmetic == "float32" else f", products in {self.arithmetic}"
        return (
            f"{self.title}: {self.updates:,} updates, {layers} units, batch "
            f"{self.batch_size}{rate}{numbers}, {data}"
        )


_ALL = tuple(range(1, NUMBER_OF_TASKS + 1))


def _default(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: (default_task(name),) for name in names}


# antmaze-large's values where the paper has none for a maze of points.
_MAZE = {
    "sorl": {"q_loss_coef": 500.0, "target_aggregation": "min"},
    **{name: {"target_aggregation": "min"} for name in ("cac", "fawac", "fbrac", "fql")},
}
# Found by a few short runs on cube-single, see the README.
_CUBE = {
    "rebrac": {"actor_penalty": 0.3, "critic_penalty": 0.0},
    "iql": {"inverse_temperature": 1.0},
    "fawac": {"inverse_temperature": 1.0},
    "cac": {"q_loss_coef": 0.01},
    "srpo": {"time_weight": "divergence"},
}

SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="paper",
            environments=dict.fromkeys(PAPER_ENVIRONMENTS, _ALL),
            table_environments=dict.fromkeys(PAPER_ENVIRONMENTS, _ALL),
            updates=1_000_000,
            evaluate_every=100_000,
            batch_size=256,
            hidden=(512, 512, 512, 512),
            actor_sizes=((64,) * 4, (128,) * 4, (256,) * 4, (512,) * 4, (1024,) * 4),
            learning_rate=None,
            seeds=8,
            fewer_seeds=5,
            episodes=50,
            generated=None,
        ),
        Scale(
            name="gpu-hour",
            environments=_default("cube-single-play-v0", "scene-play-v0"),
            table_environments=_default("cube-single-play-v0", "scene-play-v0"),
            updates=200_000,
            evaluate_every=40_000,
            batch_size=256,
            hidden=(512, 512, 512, 512),
            actor_sizes=((64,) * 4, (128,) * 4, (256,) * 4, (512,) * 4),
            learning_rate=3e-4,
            seeds=8,
            fewer_seeds=5,
            episodes=20,
            generated=1_000,
            arithmetic="bfloat16",  # so that the eight runs of figure 4 fit the hour
        ),
        Scale(
            name="laptop",
            environments=_default("cube-single-play-v0"),
            table_environments={
                **_default("cube-single-play-v0"),
                # The task that IQL alone, tried on all five, learned first.
                "pointmaze-medium-navigate-v0": (5,),
            },
            updates=30_000,
            evaluate_every=6_000,
            batch_size=128,
            hidden=(256, 256),
            actor_sizes=((32, 32), (64, 64), (128, 128), (256, 256)),
            learning_rate=1e-3,
            seeds=3,
            fewer_seeds=3,
            episodes=20,
            generated=1_000,
            chosen={"cube-single-play-v0": _CUBE, "pointmaze-medium-navigate-v0": _MAZE},
        ),
    )
}


def scale(name: str) -> Scale:
    """The scale of a name.

    Raises:
        InputError: there is none.
    """
    if name not in SCALES:
        raise InputError(f"There is no scale {name!r}: choose one of {', '.join(SCALES)}.")
    return SCALES[name]
