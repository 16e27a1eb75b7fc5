"""The main job from nothing to a report: data, training, several budgets, one page.

    make quickstart

Two CPU cores and no download; everything lands in `quickstart/`. Run it again and it goes on where
it stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sorl.cli import run

FOLDER = Path("quickstart")
ENVIRONMENT = "cube-single-play-singletask-v0"
DATASET = "cube-single-play-v0"
EPISODES = 150
UPDATES = 18_000
BUDGETS = ["1x1", "4x1", "8x1", "8x2", "8x4"]


def main() -> None:
    """Generate, train, evaluate and report through the same commands a user types."""
    began = time.monotonic()
    data = FOLDER / "data" / f"{DATASET}.npz"
    out = FOLDER / "run"
    if not data.exists():
        command("generate", DATASET, "--episodes", EPISODES, "--out", data.parent)
    if (out / "config.json").exists():
        command("resume", out)
    else:
        command(
            *("train", "sorl", "--env", ENVIRONMENT, "--data", data, "--out", out),
            *("--updates", UPDATES, "--seeds", 2, "--hidden", 256, 256, 256),
            *("--learning-rate", 3e-4, "--evaluate-every", UPDATES, "--budgets", *BUDGETS),
        )
    command("report", out, "--out", FOLDER / "report.html")
    print(f"quickstart took {(time.monotonic() - began) / 60:.1f} minutes")


def command(*words: object) -> None:
    """Show a command, run it, and end the quickstart if it fails."""
    arguments = [str(word) for word in words]
    print(f"$ sorl {' '.join(arguments)}", flush=True)
    code = run(arguments)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
