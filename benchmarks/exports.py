"""What exports weigh and how fast they act: one observation at a time, noise drawn in every call.

The policy is SORL's with the paper's networks (4 x 512 units), untrained, for 28 observation and 5
action entries. Threads are those of NumPy's matrix products and of onnxruntime.

    python -m benchmarks.exports
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import tyro

from sorl.types import Budget

BUDGETS = ("1x1", "8x1", "8x8", "4x32")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the measurement."""

    budgets: tuple[str, ...] = BUDGETS
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    calls: int = 500
    """Timed calls of each budget."""
    threads: tuple[int, ...] = (1, 2)


def export_all(folder: Path, hidden: tuple[int, ...], budgets: list[Budget]) -> None:
    import jax

    from sorl.algorithms.sorl import SORL
    from sorl.deployment.export.exporting import Format, export
    from sorl.deployment.policy import Policy, save_policy
    from sorl.types import Member, Spec

    algorithm, spec = SORL(hidden=hidden), Spec(28, 5)
    module = algorithm.policy(algorithm.init(spec, key=jax.random.key(0)))
    about = {"algorithm": algorithm, "spec": spec, "member": Member(0, 0), "update": 0}
    save_policy(folder / "policy", module, provenance={}, **about)
    policy = Policy.load(folder / "policy")
    for format in get_args(Format):
        begun = time.perf_counter()
        manifest = export(policy, folder / format, format=format, budgets=budgets)
        seconds = time.perf_counter() - begun
        actions, scores = (
            max(graph["difference"][what] or 0.0 for graph in manifest["graphs"])
            for what in ("actions", "scores")
        )
        print(
            f"{format}: {seconds:.1f} s with its check, differences of actions {actions:.1e}, of "
            f"scores {scores:.1e}"
        )
        for name, entry in manifest["files"].items():
            print(f"    {name:<20} {entry['bytes'] / 1e6:8.3f} MB")


def import_milliseconds(folder: Path, code: str) -> float:
    """Median of the time that a fresh process takes for `code`, less that of an empty one."""

    def once(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        return time.perf_counter() - begun

    return 1000 * float(np.median([once(code) - once("") for _ in range(11)]))


def measure(folder: Path, budgets: list[Budget], threads: int, calls: int) -> None:
    """Print latencies; runs in a process of its own, in which NumPy has that many threads."""
    import onnxruntime

    from sorl.deployment.export import numpy_policy

    rng = np.random.default_rng(0)
    observations = rng.standard_normal((calls, 28), np.float32)
    policy = numpy_policy.Policy(folder / "numpy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for budget in budgets:
        name = f"{budget.steps}x{'N' if budget.best_of > 1 else 1}"
        session = onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx", options)

        def in_numpy(s: np.ndarray, budget: Budget = budget) -> None:
            policy.act(s, steps=budget.steps, best_of=budget.best_of, rng=rng)

        def in_onnx(
            s: np.ndarray,
            budget: Budget = budget,
            session: onnxruntime.InferenceSession = session,
        ) -> None:
            noise = rng.standard_normal((1, budget.best_of, 5), np.float32)
            session.run(["action"], {"observation": s[None], "noise": noise})

        for library, act in (("numpy", in_numpy), ("onnxruntime", in_onnx)):
            times = _milliseconds(act, observations)
            p50, p99 = np.percentile(times, [50, 99])
            print(f"{threads} thread(s)  {budget!s:>5}  {library:<12} {p50:8.3f} {p99:8.3f}")


def _milliseconds(act: Callable[[np.ndarray], None], observations: np.ndarray) -> list[float]:
    for observation in observations[:20]:
        act(observation)
    times = []
    for observation in observations:
        begun = time.perf_counter()
        act(observation)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    budgets = [Budget.parse(text) for text in arguments.budgets]
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_all(folder, arguments.hidden, budgets)
        for code in ("import numpy", "import numpy_policy", "import onnxruntime"):
            print(f"{code:<20} {import_milliseconds(folder / 'numpy', code):6.0f} ms")
        print("one decision in milliseconds        p50      p99")
        for threads in arguments.threads:
            os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
            child = multiprocessing.get_context("spawn").Process(
                target=measure, args=(folder, budgets, threads, arguments.calls)
            )
            child.start()
            child.join()


if __name__ == "__main__":
    main()
