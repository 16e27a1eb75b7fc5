"""One training, measured in a process of its own; every other benchmark of training asks for it.

    python -m benchmarks.case '{"algorithm": "sorl", "hidden": [512, 512, 512, 512], "seeds": 4}'

It prints a line of JSON. Training and the peak of the machine's matrix products are measured in
turn (A B A B ...), so that a machine whose speed changes changes both; medians are compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sorl import platform

if TYPE_CHECKING:  # it would import JAX, which reads the number of devices then
    from sorl.arithmetic import Arithmetic

DEVICES = "JAX_NUM_CPU_DEVICES"
OBSERVATION, ACTION = 28, 5
ROUNDS = 4
SECONDS = 3.0
"""What one round of training should take, or somewhat more."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained: on data like those of cube-single, but of random numbers.

    Args:
        algorithm: its name.
        hidden: sizes of the hidden layers.
        seeds: seeds that train together.
        tasks: tasks that train together.
        batch_size: rows of a batch.
        rows: rows of the data.
        arithmetic: in which numbers networks are multiplied.
        values: other hyperparameters.
        peak: whether the machine's peak is measured too.
        xla: whether XLA is asked for the FLOPs of one member, which compiles once more.
    """

    algorithm: str = "sorl"
    hidden: tuple[int, ...] = (512,) * 4
    seeds: int = 1
    tasks: int = 1
    batch_size: int = 256
    rows: int = 100_000
    arithmetic: Arithmetic = "float32"
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    peak: bool = True
    xla: bool = False

    @property
    def network(self) -> str:
        """Such as 4 x 512."""
        return f"{len(self.hidden)} x {self.hidden[0]}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What was measured.

    Args:
        updates_per_second: updates of all members together, the median of the rounds.
        flops: floating-point operations of the matrix products of these updates, of one member.
        counted_by: `hand`, from what the updates drew, or `program`, see `sorl.experiments.cost`.
        program_flops: the same as `sorl.experiments.cost` counts them in the program, in the mean.
        xla_flops: of XLA's analysis of the compiled update, 0 if not asked: a loop counts once, of
            branches the dearest.
        peak: best rate of a large product in the same arithmetic, in FLOP/s; 0 if not measured.
        compile_seconds: time in XLA's compiler.
        memory_mib: largest memory of the process, and on a GPU of its buffers there.
        members: tasks times seeds.
    """

    updates_per_second: float
    flops: float
    counted_by: str
    program_flops: float
    xla_flops: float
    peak: float
    compile_seconds: float
    memory_mib: float
    members: int

    @property
    def fraction(self) -> float:
        """Of the peak."""
        return self.members * self.updates_per_second * self.flops / self.peak


def measure(case: Case) -> Cost:
    """The cost of a case, measured by another process."""
    command = [sys.executable, "-m", "benchmarks.case", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def sorl_flops(algorithm: Any, batch_size: int, first: int, updates: int) -> float:
    """Of the matrix products of these updates of SORL, counted by hand, in the mean.

    In passes of one batch through the actor: sampling next actions takes k, the behaviour losses
    2 forward, 4 backward and 2 of the target network, the Q loss k' forward and 2 k' backward.
    Through the critic pair: 1 for targets, 3 for its loss, 2 for the Q loss. k and k' are those
    that these very updates drew: in a short round their mean is not that of all updates.
    """
    import jax
    import jax.numpy as jnp

    def products(sizes: Sequence[int]) -> int:
        return sum(i * o for i, o in itertools.pairwise(sizes))

    actor = products((OBSERVATION + ACTION + 2, *algorithm.hidden, ACTION))
    critic = 2 * products((OBSERVATION + ACTION + 1, *algorithm.hidden, 1))
    choices = jax.vmap(algorithm.choose_steps)(jnp.arange(first, first + updates))
    critic_steps, actor_steps = (int(jnp.sum(2**choice)) for choice in choices)
    passes = critic_steps + 8 * updates + 3 * actor_steps
    return 2.0 * batch_size * (actor * passes + critic * 6 * updates) / updates


def matmul_peak(arithmetic: Arithmetic, size: int, repeats: int = 8) -> float:
    """Best rate of a square product over all cores, in FLOP/s."""
    import jax

    from sorl.mixed_precision import compute_here

    compute = compute_here(arithmetic)
    factor = compute.factor(jax.random.normal(jax.random.key(0), (size, size)))
    product = jax.jit(compute.product)
    product(factor, factor).block_until_ready()
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        product(factor, factor).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def run(case: Case) -> Cost:
    """Measure it here."""
    import jax

    from sorl import algorithms
    from sorl.data.dataset import Dataset
    from sorl.data.synthetic import synthetic
    from sorl.experiments.cost import flops_of_update
    from sorl.training import train
    from sorl.types import Spec

    compiling = [0.0]

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiling[0] += duration_secs

    if jax.default_backend() == "cpu" and str(len(jax.devices())) != os.environ[DEVICES]:
        raise RuntimeError(f"JAX was imported before {DEVICES} was set: cores would lie idle.")
    algorithm = algorithms.build({"name": case.algorithm, "hidden": case.hidden, **case.values})
    data = synthetic(OBSERVATION, ACTION, rows=case.rows)
    if case.tasks > 1:
        data = Dataset.from_arrays(
            data.observations,
            data.actions,
            data.ends,
            jax.numpy.tile(data.rewards, (case.tasks, 1)),
            jax.numpy.tile(data.masks, (case.tasks, 1)).astype(float),
            tuple(range(case.tasks)),
        )
    members = case.seeds * case.tasks
    program_flops = flops_of_update(algorithm, Spec(OBSERVATION, ACTION), case.batch_size)
    on_gpu = jax.default_backend() == "gpu"
    guess = 1e14 if on_gpu else 1e11
    updates = max(2, round(SECONDS * guess / program_flops / members))
    jax.monitoring.register_event_duration_secs_listener(listen)
    snapshots = train(
        algorithm,
        data,
        seeds=range(case.seeds),
        updates=10**9,
        chunk=updates,
        batch_size=case.batch_size,
        arithmetic=case.arithmetic,
    )
    jax.block_until_ready(next(snapshots).state)
    compile_seconds = compiling[0]
    rates, peaks, flops = [], [], []
    for turn in range(1, 1 + ROUNDS):
        peaks.append(matmul_peak(case.arithmetic, 8192 if on_gpu else 2048) if case.peak else 0.0)
        began = time.perf_counter()
        jax.block_until_ready(next(snapshots).state)
        rates.append(updates / (time.perf_counter() - began))
        flops.append(
            sorl_flops(algorithm, case.batch_size, turn * updates, updates)
            if case.algorithm == "sorl"
            else program_flops
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if on_gpu:
        memory = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
    return Cost(
        updates_per_second=statistics.median(rates),
        flops=statistics.mean(flops),
        counted_by="hand" if case.algorithm == "sorl" else "program",
        program_flops=program_flops,
        xla_flops=_xla_flops(algorithm, case.batch_size) if case.xla else 0.0,
        peak=statistics.median(peaks),
        compile_seconds=compile_seconds,
        memory_mib=memory,
        members=members,
    )


def _xla_flops(algorithm: Any, batch_size: int) -> float:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from sorl.mixed_precision import in_arithmetic
    from sorl.types import Spec, Transition

    algorithm = in_arithmetic(algorithm, "float32")
    key, spec = jax.random.key(0), Spec(OBSERVATION, ACTION)
    state = algorithm.init(spec, key=key)
    s, a, r = (jnp.zeros((batch_size, *shape)) for shape in ((OBSERVATION,), (ACTION,), ()))
    batch = Transition(s, a, r, r, s, a, r)
    program = jax.jit(lambda s, b, i, k: eqx.filter(algorithm.update(s, b, i, key=k), eqx.is_array))
    analysis = program.lower(state, batch, jnp.int32(0), key).compile().cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def main() -> None:
    """Measure the case that stands on the command line."""
    settings = json.loads(sys.argv[1])
    settings["hidden"] = tuple(settings["hidden"])
    settings["values"] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.get("values", {}).items()
    }
    print(json.dumps(dataclasses.asdict(run(Case(**settings)))), flush=True)


if __name__ == "__main__":
    platform.prepare()
    main()
