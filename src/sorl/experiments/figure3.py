"""Figure 3, run time: training against M^BTT and inference against M^inf, beside the baselines.

Speed does not depend on what the data say, so synthetic data of cube-single's sizes serve. The
methods take turns (A B C A B C ...), so that a machine whose speed changes changes all of them;
the first turn, which compiles, does not count.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sorl import algorithms
from sorl.experiments import looks
from sorl.experiments.experiment import Experiment, Measurement, OnProgress
from sorl.experiments.figure1 import STEPS
from sorl.experiments.figure2 import TRAINED
from sorl.experiments.rows import Row, Rows
from sorl.experiments.scales import Scale
from sorl.experiments.table1 import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """

    hidden: tuple[int, ...]
    batch_size: int
    seeds: int
    updates: int
    turns: int
    calls: int


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
        )
    ]


def size(scale: Scale) -> str:
    """The network, the batch and how many train together."""
    [setting] = settings(scale)
    return (
        f"{scale.title}: {len(setting.hidden)} x {setting.hidden[0]} units, batch "
        f"{setting.batch_size}, {setting.seeds} seeds together, synthetic data with {OBSERVATION} "
        f"numbers in an observation and {ACTION} in an action"
    )


def measure(setting: Setting, on_progress: OnProgress) -> list[Row]:
    """Microseconds of an update of one seed, and milliseconds of a decision."""
    # SORL for every M^BTT stands in the figure beside every other method.
    methods = [("sorl", {"backprop_steps": trained}) for trained in TRAINED]
    methods += [(method, {}) for method in METHODS if method != "sorl"]
    built = [
        (method, algorithms.get(method)(**{"hidden": setting.hidden, **values}))
        for method, values in methods
    ]
    total = len(built) * (setting.turns + 2)
    rows: list[Row] = []
    trainings = [_training(algorithm, setting) for _, algorithm in built]
    seconds: list[list[float]] = [[] for _ in built]
    done = 0
    for turn in range(setting.turns + 1):
        for place, training in enumerate(trainings):
            began = time.perf_counter()
            next(training)
            if turn:
                seconds[place].append(time.perf_counter() - began)
            done += 1
            on_progress(done, total)
    for (method, algorithm), taken in zip(built, seconds, strict=True):
        label: Row = {"method": method, "backprop_steps": getattr(algorithm, "backprop_steps", 0)}
        each = [1e6 * one / setting.updates / setting.seeds for one in taken]
        rows.append(
            {
                **label,
                "phase": "training",
                "steps": 0,
                "best_of": 0,
                "median": statistics.median(each),
                "low": min(each),
                "high": max(each),
                "repeats": len(each),
            }
        )
        own = algorithm.default_budget
        if method != "sorl" or label["backprop_steps"] == TRAINED[-1]:
            budgets = [(k, 1) for k in STEPS] if method == "sorl" else [(own.steps, own.best_of)]
            rows += [label | _latency(algorithm, *budget, setting) for budget in budgets]
        done += 1
        on_progress(done, total)
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
        chunk=setting.updates,
    )


def _latency(algorithm: Any, steps: int, best_of: int, setting: Setting) -> Row:
    """Milliseconds for one observation, from host to host, compiled."""
    import equinox as eqx
    import jax

    from sorl.inference import act
    from sorl.types import Budget, Spec

    spec = Spec(OBSERVATION, ACTION)
    policy = algorithm.policy(algorithm.init(spec, key=jax.random.key(0)))
    decide = eqx.filter_jit(
        lambda observation, key: act(policy, observation, budget=Budget(steps, best_of), key=key)
    )
    observation, key = np.zeros(OBSERVATION, np.float32), jax.random.key(1)
    np.asarray(decide(observation, key))
    taken = []
    for _ in range(setting.calls):
        began = time.perf_counter()
        np.asarray(decide(observation, key))
        taken.append(1e3 * (time.perf_counter() - began))
    low, median, high = np.percentile(taken, [5, 50, 95])
    return {
        "phase": "inference",
        "steps": steps,
        "best_of": best_of,
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "repeats": len(taken),
    }


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
        axes.set_xticks(range(len(here)), list(map(_label, here)), rotation=60, fontsize=7)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    return figure


def _label(row: Row) -> str:
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
    measurement=Measurement(settings, measure),
    size=size,
    draw=draw,
    findings=findings,
)
