"""How long `sorl --help` and `import sorl` take, beside Python alone and `import jax`.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = 7
COMMANDS = {
    "python": (sys.executable, "-c", "pass"),
    "import jax": (sys.executable, "-c", "import jax"),
    "import sorl": (sys.executable, "-c", "import sorl"),
    "sorl --help": (sys.executable, "-c", "from sorl.cli import run; run(['--help'])"),
    "sorl train sorl --help": (
        sys.executable,
        "-c",
        "from sorl.cli import run; run(['train', 'sorl', '--help'])",
    ),
}


def run() -> list[dict[str, Any]]:
    """Median seconds of every command."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    rows = [{"command": name, "seconds": statistics.median(t)} for name, t in times.items()]
    print("\n".join(table(rows)), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    return [
        "| command | seconds |",
        "| --- | --- |",
        *(f"| {row['command']} | {row['seconds']:.2f} |" for row in rows),
    ]


if __name__ == "__main__":
    run()
