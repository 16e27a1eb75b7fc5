"""Updates per second of every algorithm, as a fraction of the matrix-product peak of the same run.

The peak is that of products in the same arithmetic.

    python -m benchmarks.training [--algorithms sorl fql] [--seeds 1 4 8] [--arithmetic bfloat16]

Observation 28, action 5, batch 256, as on cube-single; networks of 4 x 512 and 2 x 256 units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import tyro

from benchmarks.case import Case, Cost, measure
from sorl import algorithms
from sorl.arithmetic import Arithmetic

NETWORKS = ((512,) * 4, (256,) * 2)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    algorithms: tuple[str, ...] = tuple(algorithms.names())
    seeds: tuple[int, ...] = (1, 4, 8)
    arithmetic: Arithmetic = "float32"


def cases(arguments: Arguments) -> Iterator[Case]:
    """Every algorithm with every network and number of seeds."""
    for name in arguments.algorithms:
        for hidden in NETWORKS:
            for seeds in arguments.seeds:
                first = seeds == arguments.seeds[0]
                yield Case(name, hidden, seeds, arithmetic=arguments.arithmetic, xla=first)


def row(case: Case, cost: Cost) -> dict[str, Any]:
    """What a table says of it."""
    return {
        "algorithm": case.algorithm,
        "network": case.network,
        "seeds": case.seeds,
        "arithmetic": case.arithmetic,
        "fraction": cost.fraction,
        **dataclasses.asdict(cost),
    }


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    head = (
        "algorithm",
        "network",
        "seeds",
        "arithmetic",
        "updates/s",
        "GFLOP/s",
        "peak",
        "fraction",
        "GFLOP an update: used",
        "program",
        "XLA",
        "compiling, s",
        "memory, MiB",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for r in rows:
        rate = r["updates_per_second"]
        cells = (
            r["algorithm"],
            r["network"],
            r["seeds"],
            r["arithmetic"],
            f"{rate:.2f}",
            f"{rate * r['flops'] * r['members'] / 1e9:.0f}",
            f"{r['peak'] / 1e9:.0f}",
            f"{r['fraction']:.2f}",
            f"{r['flops'] / 1e9:.2f} ({r['counted_by']})",
            f"{r['program_flops'] / 1e9:.2f}",
            f"{r['xla_flops'] / 1e9:.2f}" if r["xla_flops"] else "",
            f"{r['compile_seconds']:.0f}",
            f"{r['memory_mib']:.0f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def run(arguments: Arguments) -> list[dict[str, Any]]:
    """Measure, a line printed for each."""
    rows = []
    for case in cases(arguments):
        rows.append(row(case, measure(case)))
        lines = table(rows[-1:])
        print("\n".join(lines if len(rows) == 1 else lines[-1:]), flush=True)
    return rows


if __name__ == "__main__":
    run(tyro.cli(Arguments, description=__doc__))
