"""Every format the whole way: written by its own library, imported, trained on, exported.

    python tests/round_trips.py results/round-trips [--updates N]

Tests walk each part of the way with a few rows; this walks all of it, once for each format, by the
commands a user types, and keeps `table.csv` with what it found. A path that fails ends the run.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import logs
import sorl
from sorl.deployment.export import numpy_policy
from sorl.runs import Run
from sorl.units import Units

EPISODES = 40
WRITERS: dict[str, Callable[[Path], Path]] = {
    "npz": lambda folder: logs.write_npz(folder / "log.npz", log()),
    "hdf5, D4RL": lambda folder: logs.write_d4rl(folder / "log.hdf5", log()),
    "hdf5, robomimic": lambda folder: logs.write_robomimic(folder / "log.hdf5", log()),
    "parquet, LeRobot": lambda folder: logs.write_lerobot(folder / "log", log()),
    "csv": lambda folder: logs.write_csv(folder / "log.csv", log()),
}
FORMATS = ("numpy", "onnx", "stablehlo")
SETTINGS = (
    *("--hidden", 64, 64, "--batch-size", 64),
    *("--log-every", 100, "--fitted-q-updates", 500),
)


def main() -> None:
    """Walk all the ways and write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--updates", type=int, default=1000)
    arguments = parser.parse_args()
    rows = []
    for name in [*WRITERS, "minari"]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(walk(name, Path(folder), arguments.updates))
        print(rows[-1], flush=True)
    arguments.target.mkdir(parents=True, exist_ok=True)
    with (arguments.target / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def log() -> list[logs.Episode]:
    """25 steps an episode, every second one terminated, actions from 2 to 6 and one constant."""
    return logs.episodes((25,) * EPISODES)


def walk(name: str, folder: Path, updates: int) -> dict[str, Any]:
    """One format from its writer to three exports that act."""
    if name == "minari":
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
        importlib.import_module("test_minari").collect("push/random-v1", EPISODES)
        data = "minari:push/random-v1"
    else:
        command("import", WRITERS[name](folder), "--out", folder / "mine")
        data = str(folder / "mine.npz")
    run = folder / "run"
    command("train", "sorl", "--data", data, "--updates", updates, "--out", run, *SETTINGS)
    dataset, metrics = sorl.load_dataset(data=data), Run.open(run).metrics()
    row: dict[str, Any] = {
        "format": name,
        "rows": len(dataset.observations),
        "updates": int(metrics[-1]["update"]),
        "first flow loss": metrics[0]["actor/flow_matching_loss"],
        "last flow loss": metrics[-1]["actor/flow_matching_loss"],
    }
    seen = np.asarray(dataset.observations)[:: len(dataset.observations) // 500 + 1]
    policy = sorl.Policy.load(run)
    in_range(np.asarray(policy.act(seen, steps=4, best_of=8)), policy.units)
    for kind in FORMATS:
        out = folder / kind
        command("export", run, "--format", kind, "--out", out)
        graphs = json.loads((out / "export.json").read_text())["graphs"]
        row[f"{kind}, largest difference"] = max(one["difference"]["actions"] for one in graphs)
    in_range(numpy_policy.Policy(folder / "numpy").act(seen, steps=4, best_of=8), policy.units)
    return row


def in_range(actions: np.ndarray, units: Units) -> None:
    """Refuse actions that the log's machine could not take."""
    low, high = np.asarray(units.action_low), np.asarray(units.action_high)
    slack = 1e-5 * np.maximum(np.abs(low), np.abs(high))
    if not ((actions >= low - slack) & (actions <= high + slack)).all():
        raise SystemExit(f"Actions from {actions.min(0)} to {actions.max(0)} leave {units}.")


def command(*words: object) -> None:
    """`sorl WORDS`, its output shown only if it fails."""
    done = subprocess.run(
        [Path(sys.executable).with_name("sorl"), *map(str, words)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"sorl {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
