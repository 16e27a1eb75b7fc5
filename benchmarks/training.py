"""Updates per second of SORL as a fraction of the matrix-product peak measured in the same run.

    python -m benchmarks.training

Observation 28, action 5, batch 256, as on cube-single. Peak and training are measured in turn
(A B A B ...), so that a machine whose speed changes changes both; the medians are compared.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence

from sorl import platform

platform.prepare()

import jax  # noqa: E402 - XLA reads its settings when JAX starts
import jax.numpy as jnp  # noqa: E402

from sorl.algorithms.sorl import SORL  # noqa: E402
from sorl.data.synthetic import synthetic  # noqa: E402
from sorl.training import train  # noqa: E402

OBSERVATION, ACTION, BATCH = 28, 5, 256
ROUNDS = 6
CASES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    # hidden sizes, seeds, updates of one round
    ((512,) * 4, 1, 30),
    ((512,) * 4, 2, 20),
    ((256,) * 3, 2, 100),
    ((256,) * 2, 4, 100),
)


def flops(algorithm: SORL, first: int, updates: int) -> float:
    """Multiplications and additions of the matrix products of these updates, counted by hand.

    In passes of one batch through the actor: sampling next actions takes k, the behaviour losses
    2 forward, 4 backward and 2 of the target network, the Q loss k' forward and 2 k' backward.
    Through the critic pair: 1 for targets, 3 for its loss, 2 for the Q loss. k and k' are those
    that these very updates drew: in a short round their mean is not that of all updates.
    """

    def products(sizes: Sequence[int]) -> int:
        return sum(i * o for i, o in itertools.pairwise(sizes))

    actor = products((OBSERVATION + ACTION + 2, *algorithm.hidden, ACTION))
    critic = 2 * products((OBSERVATION + ACTION + 1, *algorithm.hidden, 1))
    choices = jax.vmap(algorithm.choose_steps)(jnp.arange(first, first + updates))
    critic_steps, actor_steps = (int(jnp.sum(2**choice)) for choice in choices)
    passes = critic_steps + 8 * updates + 3 * actor_steps
    return 2.0 * BATCH * (actor * passes + critic * 6 * updates)


def matmul_peak(size: int = 2048, repeats: int = 8) -> float:
    """Best rate of a square float32 product over all cores, in FLOP/s."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)
    product(a).block_until_ready()
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        product(a).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    """Measure every case and print one line each."""
    dataset = synthetic(OBSERVATION, ACTION)
    names = ("network", "seeds", "updates/s", "GFLOP/s", "peak", "fraction")
    print("".join(f"{name:>11}" for name in names))
    for hidden, seeds, updates in CASES:
        algorithm = SORL(hidden=hidden, q_loss_coef=10.0)
        snapshots = train(
            algorithm, dataset, seeds=range(seeds), updates=10**9, chunk=updates, batch_size=BATCH
        )
        next(snapshots)
        rates, speeds, peaks = [], [], []
        for turn in range(1, 1 + ROUNDS):
            peaks.append(matmul_peak())
            began = time.perf_counter()
            next(snapshots)
            seconds = time.perf_counter() - began
            rates.append(updates / seconds)
            speeds.append(seeds * flops(algorithm, turn * updates, updates) / seconds)
        rate, done, peak = map(statistics.median, (rates, speeds, peaks))
        network = f"{len(hidden)} x {hidden[0]}"
        print(
            f"{network:>11}{seeds:>11}{rate:>11.2f}{done / 1e9:>11.1f}{peak / 1e9:>11.1f}"
            f"{done / peak:>11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
