"""How long `Policy.act` takes for one observation, and whether it keeps its deadlines.

Latencies are of SORL's policy with the paper's networks (4 x 512 units), untrained, for 28
observation and 5 action entries. Deadlines are those of a run that `sorl calibrate` has measured on
this machine, without and with processes beside that keep every core busy.

    python -m benchmarks.acting
    python -m benchmarks.acting --run runs/cube
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from sorl import platform
from sorl.algorithms.sorl import SORL
from sorl.choices import Choice
from sorl.deployment.measuring import latencies
from sorl.deployment.policy import Policy, save_policy
from sorl.inference import Strategy
from sorl.types import Budget, Member, Spec


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the measurement."""

    budgets: tuple[str, ...] = ("1x1", "8x1", "8x8", "4x32")
    choices: tuple[str, ...] = ("best", "typical-2", "central")
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    calls: int = 1000
    run: Path | None = None
    """A calibrated run, whose deadlines are tried."""
    deadlines: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """In milliseconds."""


def untrained(folder: Path, hidden: tuple[int, ...]) -> Policy:
    algorithm, spec = SORL(hidden=hidden), Spec(28, 5)
    module = algorithm.policy(algorithm.init(spec, key=jax.random.key(0)))
    save_policy(
        folder,
        module,
        algorithm=algorithm,
        spec=spec,
        member=Member(0, 0),
        update=0,
        provenance={},
    )
    return Policy.load(folder)


def run(arguments: Arguments) -> list[dict[str, float | str]]:
    """Measure latencies, and print a line for each budget and choice."""
    ways = []
    for budget in map(Budget.parse, arguments.budgets):
        for choice in arguments.choices if budget.best_of > 1 else ("own",):
            ways.append((budget, Strategy(choice=Choice.parse(choice))))
    with tempfile.TemporaryDirectory() as temporary:
        policy = untrained(Path(temporary) / "policy", arguments.hidden)
        taken = latencies(
            policy, ways, [1], calls=arguments.calls, on_progress=lambda done, total: None
        )
    print("one decision in milliseconds       p50      p99")
    rows: list[dict[str, float | str]] = []
    for (budget, strategy), times in zip(ways, taken[:, 0], strict=True):
        p50, p99 = map(float, np.percentile(times, [50, 99]))
        print(f"{budget!s:>5}  {strategy.choice!s:<20} {p50:8.3f} {p99:8.3f}")
        choice = str(strategy.choice)
        rows.append({"budget": str(budget), "choice": choice, "p50_ms": p50, "p99_ms": p99})
    return rows


def print_deadlines(policy: Policy, deadlines: tuple[float, ...], calls: int, beside: str) -> None:
    print(f"deadline   buys               p50      p99  late   ({beside})")
    assert policy.calibration is not None
    rng = np.random.default_rng(0)
    for deadline in deadlines:
        bought = policy.calibration.best_within(deadline)
        times = np.zeros(calls)
        for call in range(calls):
            observation = rng.standard_normal(policy.spec.observation_size)
            begun = time.perf_counter()
            policy.act(observation, deadline_ms=deadline)
            times[call] = 1000 * (time.perf_counter() - begun)
        p50, p99 = np.percentile(times, [50, 99])
        late = np.mean(times > deadline)
        name = f"{bought.budget} {bought.choice}"
        print(f"{deadline:5.1f} ms   {name:<14} {p50:8.3f} {p99:8.3f} {late:5.1%}")


def keep_busy() -> None:
    x = np.ones((400, 400), np.float32)
    while True:
        np.matmul(x, x)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    print(f"{platform.cores()} CPU cores, load {os.getloadavg()[0]:.1f}")
    if arguments.run is None:
        run(arguments)
        return
    policy = Policy.load(arguments.run)
    policy.prepare()
    print_deadlines(policy, arguments.deadlines, arguments.calls, "nothing beside")
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=keep_busy, daemon=True) for _ in range(platform.cores())]
    for process in busy:
        process.start()
    time.sleep(3)
    print_deadlines(
        policy, arguments.deadlines, arguments.calls, f"{len(busy)} busy processes beside"
    )


if __name__ == "__main__":
    main()
