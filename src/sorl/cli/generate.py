"""`sorl generate NAME`: make an OGBench data set on this machine."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and generate."""
    tyro.cli(_generate, prog="sorl generate", args=arguments)


def _generate(
    name: tyro.conf.Positional[str],
    out: Path = Path("data"),
    episodes: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    expert: Path | None = None,
    expert_steps: int | None = None,
) -> None:
    """Write NAME.npz and NAME-val.npz in OGBench's format, from the experts inside ogbench.

    The same seed gives the same bytes whatever the number of workers. After a kill or Ctrl-C the
    same command goes on where it stopped. Ant and humanoid mazes and soccer need an expert that
    ogbench does not ship: it is trained first, which takes an hour or more (ant), days (soccer) or
    weeks (humanoid), and kept in OUT/experts for the next command.

    Args:
        name: data set, for example cube-single-play-v0.
        out: folder for the two files.
        episodes: training episodes; without it the published number (validation: a tenth).
        workers: processes; without it one a core.
        seed: seed of everything random.
        overwrite: replace files that are there.
        expert: file of a trained expert (actor.safetensors) to take instead of training one.
        expert_steps: steps of the expert's training; without it the published number.
    """
    from sorl.data.generate import describe, generate, show_progress

    with show_progress() as on_progress:
        report = generate(
            name,
            out=out,
            episodes=episodes,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            expert=expert,
            expert_steps=expert_steps,
            on_progress=on_progress,
        )
    print(describe(report.train_path))
    if report.expert is not None:
        print(f"walked by the expert in {report.expert}")
    new = report.train_rows + report.validation_rows - report.found_rows
    print(
        f"wrote {report.train_path} ({report.train_rows:,} rows) and {report.validation_path} "
        f"({report.validation_rows:,} rows) in {report.seconds:.0f} s, "
        f"{new / report.seconds:,.0f} new rows/s"
    )
