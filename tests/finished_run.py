"""What tests of whole runs need: real processes, commands, tiny data and a tiny algorithm."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ENVIRONMENT = "pointmaze-medium-navigate-singletask-v0"
UPDATES = 240
MILESTONE = 120
# Members of the two kinds of columns that a clock decides.
CLOCK_COLUMNS = ("latency_ms", "act_ms")


class Processes:
    """Starts `sorl` as a process of its own; they share what they compiled."""

    def __init__(self, cache: Path):
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONWARNINGS": "default",
        }

    def start(self, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """A process that runs; its output is text."""
        program = "import sorl.cli; sorl.cli.main()"
        return subprocess.Popen(
            [*prefix, sys.executable, "-c", program, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a process that has ended."""
        with self.start(*arguments, prefix=prefix) as process:
            out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def train_arguments(data: Path, out: Path) -> list[str]:
    """The command of the run that is killed, damaged, resumed and evaluated."""
    text = f"""
        train sorl --env {ENVIRONMENT} --data {data} --out {out} --updates {UPDATES}
        --evaluate-every {MILESTONE} --log-every 20 --checkpoint-seconds 0 --hidden 16 16
        --discretization 2 --backprop-steps 2 --budgets 1x1 2x2 --episodes 1 --workers 1
        --tensorboard False
    """
    return text.split()


def evaluations_without_clock(run: Path) -> list[dict[str, str]]:
    """The rows of evaluations.csv, without what two equal runs differ in."""
    with (run / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in CLOCK_COLUMNS} for row in rows]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content, but for the lock, whose content is a pid."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tiny_arrays(rows: int = 40) -> dict[str, np.ndarray]:
    """Arrays of a set that needs no environment."""
    generator = np.random.default_rng(3)
    terminals = np.zeros(rows, np.float32)
    terminals[[rows // 2 - 1, rows - 1]] = 1
    return {
        "observations": generator.normal(size=(rows, 3)).astype(np.float32),
        "actions": generator.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32),
        "terminals": terminals,
        "rewards": -np.ones(rows, np.float32),
        "masks": np.ones(rows, np.float32),
    }


# One file in the folder of algorithms is all it takes, so one in another folder on that path, too.
TINY = '''
    """Tiny: a policy without critic that takes no time to compile."""

    import dataclasses
    from typing import ClassVar

    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
    from sorl.types import Budget


    class TinyPolicy(AbstractPolicy):
        matrix: jax.Array

        def check_steps(self, steps):
            pass

        def noise_shape(self, steps):
            return self.matrix.shape[:1]

        def from_noise(self, observation, noise, *, steps):
            return jnp.tanh(self.matrix @ observation + 0.1 * noise)


    class TinyState(eqx.Module):
        matrix: jax.Array
        unlucky: jax.Array


    @dataclasses.dataclass(frozen=True)
    class Tiny(AbstractAlgorithm[TinyState]):
        """A least-squares imitation.

        Args:
            rate: size of a step.
            risk: share of the members that fail after three updates.
        """

        rate: float = 0.1
        risk: float = 0.0
        presets: ClassVar = {}
        default_budget: ClassVar = Budget(1, 1)

        def init(self, spec, *, key):
            matrix = jax.random.normal(key, (spec.action_size, spec.observation_size))
            return TinyState(matrix, jax.random.uniform(key) < self.risk)

        def update(self, state, batch, update_index, *, key):
            def loss(matrix):
                return jnp.mean((batch.observation @ matrix.T - batch.action) ** 2)

            value, gradient = jax.value_and_grad(loss)(state.matrix)
            value = jnp.where(state.unlucky & (update_index >= 3), jnp.nan, value)
            return TinyState(state.matrix - self.rate * gradient, state.unlucky), {"loss": value}

        def policy(self, state):
            return TinyPolicy(state.matrix)
'''
