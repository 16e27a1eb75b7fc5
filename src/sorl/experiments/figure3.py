"""Figure 3, run time: training against M^BTT and inference against M^inf, beside the baselines.

Speed does not depend on what the data say, so synthetic data of cube-single's sizes serve. The
methods take turns (A B C A B C ...), so that a machine whose speed changes changes all of them;
the first turn, which compiles, does not count. Times belong to a machine: on another processor or
number of cores, and with another version of JAX or sorl, they are measured anew.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sorl import algorithms, gpus, provenance
from sorl.arithmetic import Arithmetic
from sorl.experiments import looks
from sorl.experiments.cost import flops_of_update
from sorl.experiments.experiment import Experiment, Measurement, OnProgress
from sorl.experiments.figure1 import STEPS
from sorl.experiments.figure2 import TRAINED
from sorl.experiments.rows import Row, Rows
from sorl.experiments.scales import Scale
from sorl.experiments.table1 import METHODS
from sorl.platform import cores
from sorl.types import Budget, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Built = Sequence[tuple[str, Any]]
"""Methods by name, each with its algorithm."""

OBSERVATION, ACTION, DATA_ROWS = 28, 5, 100_000


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes:
        hidden: hidden layers of every network.
        batch_size: rows of one batch.
        seeds: seeds that train together.
        updates: updates of one turn.
        turns: timed turns of each method.
        calls: timed decisions of each method and number of steps.
        where: the processor, the number of cores, the GPUs, and versions.
        arithmetic: in which numbers networks are multiplied in training.
    """

    hidden: tuple[int, ...]
    batch_size: int
    seeds: int
    updates: int
    turns: int
    calls: int
    where: tuple[str, ...] = ()
    arithmetic: Arithmetic = "float32"


def settings(scale: Scale) -> list[Setting]:
    """One for the whole figure, since what is compared must be timed together."""
    return [
        Setting(
            hidden=scale.hidden,
            batch_size=scale.batch_size,
            seeds=scale.fewer_seeds,
            updates=min(500, scale.updates // 600),
            turns=5,
            calls=200,
            where=_here(),
            arithmetic=scale.arithmetic,
        )
    ]


def _here() -> tuple[str, ...]:
    # Not JAX's devices: asking for them would take a GPU's memory from the runs.
    versions = provenance.versions()
    named = (f"{name} {versions.get(name)}" for name in ("jax", "jaxlib", "sorl"))
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return (provenance.processor(), f"{cores()} cores", *gpus.names(), platforms, *named)


def flops(setting: Setting) -> float:
    """FLOPs of the matrix products of all timed updates."""
    spec = Spec(OBSERVATION, ACTION)
    every = (flops_of_update(made, spec, setting.batch_size) for _, made in _methods(setting))
    return sum(every) * setting.updates * setting.seeds * (setting.turns + 1)


def size(scale: Scale) -> str:
    """The network, the batch and how many train together."""
    [setting] = settings(scale)
    numbers = (
        ""
        if setting.arithmetic == "float32"
        else f", {setting.arithmetic} in training and float32 in decisions"
    )
    return (
        f"{scale.title}: {len(setting.hidden)} x {setting.hidden[0]} units, batch "
        f"{setting.batch_size}{numbers}, {setting.seeds} seeds together, synthetic data with "
        f"{OBSERVATION} numbers in an observation and {ACTION} in an action"
    )


def _methods(setting: Setting) -> Built:
    """SORL for every M^BTT, then every other method."""
    methods = [("sorl", {"backprop_steps": trained}) for trained in TRAINED]
    methods += [(method, {}) for method in METHODS if method != "sorl"]
    return [
        (method, algorithms.get(method)(**{"hidden": setting.hidden, **values}))
        for method, values in methods
    ]


def measure(setting: Setting, on_progress: OnProgress, folder: Path) -> list[Row]:
    """Microseconds of an update of one seed, and milliseconds of a decision.

    Nothing is kept in the folder: what is compared is timed in one go.
    """
    built = _methods(setting)
    total = len(built) * (setting.turns + 2)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    return [*_time_training(built, setting, advance), *_time_decisions(built, setting, advance)]


def _label(method: str, algorithm: Any, phase: str, budget: Budget | None) -> Row:
    return {
        "method": method,
        "backprop_steps": getattr(algorithm, "backprop_steps", 0),
        "phase": phase,
        "steps": 0 if budget is None else budget.steps,
        "best_of": 0 if budget is None else budget.best_of,
    }


def _time_training(built: Built, setting: Setting, advance: Callable[[], None]) -> list[Row]:
    """Microseconds of an update and seed, with the range of the turns."""
    trainings = [_training(algorithm, setting) for _, algorithm in built]
    seconds = np.empty((setting.turns + 1, len(built)))
    for turn, place in np.ndindex(seconds.shape):
        began = time.perf_counter()
        next(trainings[place])
        seconds[turn, place] = time.perf_counter() - began
        advance()
    rows = []
    for (method, algorithm), taken in zip(built, seconds[1:].T, strict=True):
        each = 1e6 * taken / setting.updates / setting.seeds
        low, median, high = map(float, (each.min(), np.median(each), each.max()))
        found = {"median": median, "low": low, "high": high, "repeats": setting.turns}
        rows.append(_label(method, algorithm, "training", None) | found)
    return rows


def _time_decisions(built: Built, setting: Setting, advance: Callable[[], None]) -> list[Row]:
    """Milliseconds of a decision, with its 5th and 95th percentile."""
    ways: list[tuple[Row, Callable[[], object]]] = []
    for method, algorithm in built:
        advance()
        if method != "sorl":
            budgets = [algorithm.own_budget]
        elif algorithm.backprop_steps == TRAINED[-1]:
            budgets = [Budget(k, 1) for k in STEPS]
        else:
            continue  # M^BTT makes no difference to a decision
        for budget in budgets:
            label = _label(method, algorithm, "inference", budget)
            ways.append((label, _decision(algorithm, budget)))
    milliseconds = np.empty((setting.calls, len(ways)))
    for call, place in np.ndindex(milliseconds.shape):
        began = time.perf_counter()
        ways[place][1]()
        milliseconds[call, place] = 1e3 * (time.perf_counter() - began)
    rows = []
    for (label, _), taken in zip(ways, milliseconds.T, strict=True):
        low, median, high = map(float, np.percentile(taken, [5, 50, 95]))
        found = {"median": median, "low": low, "high": high, "repeats": setting.calls}
        rows.append(label | found)
    return rows


def _training(algorithm: Any, setting: Setting) -> Any:
    from sorl.data.synthetic import synthetic
    from sorl.training import train

    data = synthetic(OBSERVATION, ACTION, DATA_ROWS)
    return train(
        algorithm,
        data,
        seeds=range(setting.seeds),
        updates=10**9,
        batch_size=setting.batch_size,
        arithmetic=setting.arithmetic,
        chunk=setting.updates,
    )


def _decision(algorithm: Any, budget: Budget) -> Callable[[], object]:
    """Decides for one observation, from host to host, compiled; called once already."""
    import equinox as eqx
    import jax

    from sorl.inference import act

    policy = algorithm.policy(algorithm.init(Spec(OBSERVATION, ACTION), key=jax.random.key(0)))
    decide = eqx.filter_jit(
        lambda observation, key: act(policy, observation, budget=budget, key=key)
    )
    observation, key = np.zeros(OBSERVATION, np.float32), jax.random.key(1)

    def decision() -> object:
        return np.asarray(decide(observation, key))

    decision()
    return decision


def draw(rows: Rows, note: str) -> Figure:
    """Two panels of bars: SORL at every M^BTT or M^inf, then the other methods."""
    figure, every = looks.panels(["training", "inference"], note, width=5.2)
    units = ("microseconds an update and seed", "milliseconds a decision")
    for axes, phase, unit in zip(every, ("training", "inference"), units, strict=True):
        here = rows.where(phase=phase).rows
        values = np.array([[float(row[n]) for n in ("median", "low", "high")] for row in here])
        reach = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
        colors = [looks.SERIES[0 if row["method"] == "sorl" else 6] for row in here]
        axes.bar(range(len(here)), values[:, 0], yerr=reach, color=colors, capsize=2)
        axes.set_xticks(range(len(here)), list(map(_tick, here)), rotation=60, fontsize=7)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    return figure


def _tick(row: Row) -> str:
    name = str(row["method"]).upper()
    if row["phase"] == "inference":
        return f"{name} {row['steps']:g}x{row['best_of']:g}"
    return f"{name} {row['backprop_steps']:g}" if row["method"] == "sorl" else name


def findings(rows: Rows, scale: Scale) -> list[str]:
    """How time grows with M^BTT and M^inf, and where the other methods stand."""
    training, inference = (rows.where(phase=phase) for phase in ("training", "inference"))
    mine = [
        float(training.where(method="sorl", backprop_steps=t).rows[0]["median"]) for t in TRAINED
    ]
    ahead = [float(inference.where(method="sorl", steps=k).rows[0]["median"]) for k in STEPS]
    others = {m: float(training.where(method=m).rows[0]["median"]) for m in METHODS if m != "sorl"}
    order = ", ".join(
        f"{m.upper()} {v / mine[-1]:.2f}" for m, v in sorted(others.items(), key=lambda p: p[1])
    )
    return [
        f"An update of one seed takes SORL {', '.join(f'{v:,.0f}' for v in mine)} microseconds "
        f"with M^BTT = {', '.join(map(str, TRAINED))}: {mine[-1] / mine[0]:.1f} times as long at "
        "the largest as at the smallest.",
        f"As a fraction of SORL with M^BTT = {TRAINED[-1]} the others take {order}.",
        f"A decision takes SORL {', '.join(f'{v:.3f}' for v in ahead)} ms in "
        f"{', '.join(map(str, STEPS))} steps.",
        f"Median, and the range, of {training.rows[0]['repeats']:g} turns in training and the 5th "
        f"to 95th percentile of {inference.rows[0]['repeats']:g} decisions.",
    ]


EXPERIMENT = Experiment(
    title="Figure 3: run time",
    published="Training time grows with M^BTT and inference time with M^inf.",
    measurement=Measurement(settings, measure, flops),
    size=size,
    draw=draw,
    findings=findings,
)
