"""`sorl report RUN ...`: one HTML page about one run, or several side by side."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and write the report."""
    tyro.cli(_report, prog="sorl report", args=arguments)


def _report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("report.html"),
    film: bool = True,
) -> None:
    """Draw one or more runs as a single HTML page that opens from disk.

    Args:
        runs: folders of the runs; several are compared in the same figures.
        out: file to write.
        film: render a short film of each run's first policy, where rendering works and there is
            none of this policy yet.
    """
    from sorl.films import film_run
    from sorl.report.page import write_report
    from sorl.runs import Run

    for path in runs:
        opened = Run.open(path)
        if film:
            film_run(opened)
    print(f"wrote {write_report(runs, out)}")
