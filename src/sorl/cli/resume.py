"""`sorl resume RUN`: go on with a run."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and resume."""
    tyro.cli(_resume, prog="sorl resume", args=arguments)


def _resume(run: tyro.conf.Positional[Path]) -> None:
    """Go on with a run that was stopped or killed; its settings and data must be unchanged.

    Args:
        run: folder of the run.
    """
    from sorl import jobs

    jobs.resume(run)
