"""Training on data on the disk: how fast beside data on the device, and how much memory.

    python -m benchmarks.streaming

Rows are synthetic, observation 28 and action 5, 1,001 rows an episode. Rates are those of SORL with
one seed and batches of 256: the same updates in turn from a million rows on the device and from the
same rows on the disk (A B A B ...), medians. Memory is that of a process that trains on files of
1, 10 and 100 million rows, which are sparse, so that they take no room on the disk: its own, and
its own with the pages of files that it has touched.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sorl import platform

platform.prepare()

import numpy as np  # noqa: E402 - XLA reads its settings when JAX starts

from sorl.algorithms.sorl import SORL  # noqa: E402
from sorl.data.dataset import Dataset  # noqa: E402
from sorl.data.shards import Manifest, Shard, Shards, open_shards, record_of  # noqa: E402
from sorl.members import Snapshot  # noqa: E402
from sorl.training import train  # noqa: E402
from sorl.types import Spec  # noqa: E402
from sorl.units import USUAL  # noqa: E402

SPEC = Spec(28, 5)
EPISODE = 1001
SHARD = 1_001_000
ROUNDS = 5
CASES = (((512,) * 4, 30), ((256,) * 2, 200))
"""Hidden sizes, and updates of one round."""


def written(folder: Path, shards: int, *, sparse: bool) -> Shards:
    """Shards of a million rows each; sparse ones are zeros that take no room."""
    made, kind = [], record_of(SPEC, 1)
    ends = np.arange(EPISODE - 1, SHARD, EPISODE)
    for index in range(shards):
        own = folder / f"{index:05d}"
        own.mkdir(parents=True)
        rows = np.lib.format.open_memmap(own / "rows.npy", "w+", kind, (SHARD,))
        if not sparse:
            random = np.random.default_rng(index)
            rows["observation"] = random.normal(size=(SHARD, SPEC.observation_size))
            rows["action"] = random.uniform(-1, 1, (SHARD, SPEC.action_size))
            rows["reward"], rows["mask"] = -1, True
            rows["end"][ends] = True
        rows.flush()
        del rows
        np.save(own / "ends.npy", ends, allow_pickle=False)
        made.append(Shard(own.name, "synthetic", 0, SHARD, len(ends), (1.0,), (0,), str(index)))
    Manifest(SPEC, None, (0,), USUAL, shards, tuple(made)).write(folder)
    return open_shards(folder)


def on_device(shards: Shards) -> Dataset:
    """The rows of a single shard."""
    rows = np.load(shards.path / "00000" / "rows.npy", allow_pickle=False)
    return Dataset.from_arrays(
        rows["observation"], rows["action"], rows["end"], rows["reward"].T, rows["mask"].T
    )


def print_rates(folder: Path) -> None:
    shards = written(folder / "rates", 1, sparse=False)
    sources: dict[str, Dataset | Shards] = {"device": on_device(shards), "disk": shards}
    print(f"{'network':>11}{'device /s':>11}{'disk /s':>11}{'ratio':>11}")
    for hidden, updates in CASES:
        running: dict[str, Iterator[Snapshot]] = {}
        for name, source in sources.items():
            running[name] = train(
                SORL(hidden=hidden, q_loss_coef=10.0),
                source,
                seeds=(0,),
                updates=updates * (ROUNDS + 1),
                chunk=updates,
                batch_size=256,
            )
            next(running[name])
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(ROUNDS):
            for name, snapshots in running.items():
                began = time.perf_counter()
                next(snapshots)
                rates[name].append(updates / (time.perf_counter() - began))
        device, disk = (statistics.median(rates[name]) for name in sources)
        network = f"{len(hidden)} x {hidden[0]}"
        print(f"{network:>11}{device:>11.2f}{disk:>11.2f}{disk / device:>11.2f}", flush=True)


def print_memory(folder: Path) -> None:
    print(f"{'rows':>11}{'own MB':>11}{'with files':>11}{'open s':>11}", flush=True)
    for millions in (1, 10, 100):
        path = folder / str(millions)
        written(path, millions, sparse=True)
        subprocess.run([sys.executable, "-m", __spec__.name, str(path)], check=True)


def train_and_tell(path: Path) -> None:
    """Train a little on shards in this process, and print its memory."""
    began = time.perf_counter()
    shards = open_shards(path)
    opened = time.perf_counter() - began
    for _ in train(SORL(hidden=(64,)), shards, seeds=(0,), updates=2000, chunk=500):
        pass
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(told[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    print(f"{shards.rows:>11,}{own:>11.0f}{own + mapped:>11.0f}{opened:>11.2f}", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        train_and_tell(Path(sys.argv[1]))
        return
    print(f"{platform.cores()} CPU cores, load before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        print_rates(Path(folder))
        print_memory(Path(folder))


if __name__ == "__main__":
    main()
