"""What a run costs, before it is made: FLOPs from its program, time from a short measurement here.

Only matrix products are counted, which is where the time goes. A branch that is chosen by the
update index counts as the mean of its alternatives, for each is drawn equally often; the compiled
program's own analysis, which takes the dearest, would not tell M^BTT = 4 from 8. A loop whose
length is drawn counts once: SORL's sampling of next actions, so with M^BTT = 8 its update of 14.5
GFLOP (counted by hand, 4 x 512 units, batch 256) counts as 13.3.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from sorl.algorithm import AbstractAlgorithm
from sorl.data.synthetic import synthetic
from sorl.experiments.cells import Cell
from sorl.training import train
from sorl.types import Spec, Transition

SIZES = {
    "antmaze": (29, 8),
    "antsoccer": (42, 8),
    "cube-double": (37, 5),
    "cube-single": (28, 5),
    "humanoidmaze": (69, 21),
    "pointmaze": (2, 2),
    "scene": (40, 5),
}
"""Numbers in an observation and in an action, by the beginning of the data set's name."""

_OTHERWISE = (40, 8)


def flops_of_run(cell: Cell) -> float:
    """FLOPs of the matrix products of all updates, tasks and seeds of a run."""
    update = flops_of_update(cell.algorithm, _spec(cell), cell.scale.batch_size)
    return update * cell.scale.updates * cell.seeds * len(cell.tasks)


@functools.cache
def flops_of_update(algorithm: AbstractAlgorithm[Any], spec: Spec, batch_size: int) -> float:
    """FLOPs of the matrix products of one update of one member, in the mean over updates."""
    key = jax.random.key(0)
    batch = eqx.filter_eval_shape(lambda: _batch(spec, batch_size))

    def update(state: Any, batch: Any, index: Any, key: Any) -> Any:
        return algorithm.update(state, batch, index, key=key)

    return flops_of(update, _state(algorithm, spec), batch, jnp.int32(0), key)


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of the matrix products of a call, in which a loop of unknown length counts once.

    Args:
        function: what JAX can trace.
        *arguments: of it; arrays in them may be `jax.ShapeDtypeStruct`s.
    """

    def traced(leaf: Any) -> bool:
        return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)

    arrays, static = eqx.partition(arguments, traced)

    def flat(arrays: Any) -> Any:
        return eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array)

    return _flops(jax.make_jaxpr(flat)(arrays).jaxpr)


def checkpoint_bytes(cell: Cell) -> float:
    """Bytes on the disk of the checkpoints that a run keeps: one for each of its evaluations."""
    leaves = jax.tree.leaves(_state(cell.algorithm, _spec(cell)))
    arrays = (leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    return one * cell.seeds * len(cell.tasks) * (cell.scale.updates // cell.scale.evaluate_every)


def seconds_per_flop(cell: Cell, *, updates: int = 20) -> float:
    """Seconds that a FLOP takes in training here, from some 20 updates of one run's program.

    All cores take part as far as the run's members can be shared among them, as in a launch of as
    many runs as there are cores each has one.
    """
    spec = _spec(cell)
    training = train(
        cell.algorithm,
        synthetic(spec.observation_size, spec.action_size, rows=10_000),
        seeds=range(cell.seeds * len(cell.tasks)),
        updates=10**9,
        batch_size=cell.scale.batch_size,
        arithmetic=cell.scale.arithmetic,
        chunk=updates,
    )
    next(training)  # compiles
    began = time.perf_counter()
    next(training)
    taken = time.perf_counter() - began
    members = cell.seeds * len(cell.tasks)
    return taken / updates / members / flops_of_update(cell.algorithm, spec, cell.scale.batch_size)


def readable(flops: float) -> str:
    """A number of FLOPs with its unit."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops / 1e9:.3g} GFLOP"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def _spec(cell: Cell) -> Spec:
    found = (sizes for start, sizes in SIZES.items() if cell.dataset.startswith(start))
    return Spec(*next(found, _OTHERWISE))


def _state(algorithm: AbstractAlgorithm[Any], spec: Spec) -> Any:
    """Shapes of a member's state."""
    return eqx.filter_eval_shape(lambda: algorithm.init(spec, key=jax.random.key(0)))


def _batch(spec: Spec, size: int) -> Transition:
    observation = jnp.zeros((size, spec.observation_size))
    action, number = jnp.zeros((size, spec.action_size)), jnp.zeros(size)
    return Transition(observation, action, number, number, observation, action, number)


def _flops(program: Any) -> float:
    total = 0.0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
            continue
        inner = _programs(equation)
        if equation.primitive.name == "cond":
            total += sum(map(_flops, inner)) / len(inner)
        else:
            repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += repeats * sum(map(_flops, inner))
    return total


def _programs(equation: Any) -> Sequence[Any]:
    """The programs inside an equation: of a call, a loop or a branch."""
    found = []
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                found.append(one)
    return found


def _product(equation: Any) -> float:
    (contracted, summed), (_, mapped) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars)
    if len(right) == len(summed) + len(mapped):
        return 0.0  # a sum, written as a product with ones or with itself
    result = equation.outvars[0].aval.shape
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)
