"""Environment steps per second of `sorl generate` with one worker and with two.

    python -m benchmarks.generation [--episodes 8]

Both write the same episodes into a new folder; the seconds to start are in both.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import tyro

from sorl.data.generate import generate


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to make."""

    name: str = "cube-single-play-v0"
    episodes: int = 8
    workers: tuple[int, ...] = (1, 2)


def run(arguments: Arguments) -> list[dict[str, float | str]]:
    """Rows per second of each number of workers."""
    rows: list[dict[str, float | str]] = []
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            generate(arguments.name, out=Path(folder), episodes=arguments.episodes, workers=workers)
            seconds = time.perf_counter() - began
        episodes = arguments.episodes + max(1, arguments.episodes // 10)
        rate = episodes * 1001 / seconds
        rows.append(
            {
                "name": arguments.name,
                "workers": workers,
                "seconds": seconds,
                "rows_per_second": rate,
            }
        )
        print(f"{arguments.name}, {workers} worker(s): {rate:.0f} rows/s", flush=True)
    return rows


if __name__ == "__main__":
    run(tyro.cli(Arguments, description=__doc__))
