"""The process that performs one work, wherever it runs: how it begins and what its end means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sorl import files

PATIENCE = 120.0
"""Seconds that a process waits for one that lost its launcher and still saves the same run."""


def command(patience: float = PATIENCE) -> list[str]:
    """The command of a worker, but for the folder of its work."""
    return [sys.executable, "-m", "sorl.launch.worker", "--patience", str(patience)]


def begin(
    folder: Path,
    *,
    cores: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start it; it stops, saving everything, when its standard input is closed.

    The other end of that is in this process alone, so it does the same when this process dies.

    Args:
        folder: the folder of a work that was written; what the process says is added to `log.txt`.
        cores: cores to stay on; None means all.
        environment: its environment variables; None means those of this process.

    Raises:
        InputError: the log cannot be written.
    """
    full = [*command(), "--watch"]
    if cores is not None:
        full += ["--cores", ",".join(map(str, cores))]
    with files.explained("write", log_of(folder)), log_of(folder).open("ab") as log:
        # A session of its own: Ctrl-C at the terminal is the launcher's to pass on, once.
        return subprocess.Popen(
            [*full, "--", str(folder)],
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop with everything saved; asked again, nothing more happens."""
    if process.stdin is not None:
        process.stdin.close()


def log_of(folder: Path) -> Path:
    """Where its output stands, attempt after attempt."""
    return folder / "log.txt"


def last_words(folder: Path, code: int) -> str:
    """Why it ended, given its exit code."""
    log = log_of(folder)
    if code == 0:
        return f"its process was stopped before its end, see {log}."
    if code < 0:
        return f"its process was killed ({signal.Signals(-code).name}), see {log}."
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}, see {log}."
