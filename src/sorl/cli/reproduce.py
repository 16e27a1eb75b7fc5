"""`sorl reproduce TARGET ...`: the paper's figures and tables, at a scale of your choice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from sorl.cli.repeated import Repeatable

if TYPE_CHECKING:
    from sorl.experiments.reproduce import Reproduction
    from sorl.launch.progress import Standing
    from sorl.launch.work import Work


def run(arguments: list[str]) -> None:
    """Parse and reproduce."""
    tyro.cli(_reproduce, prog="sorl reproduce", args=arguments)


def _reproduce(
    targets: tyro.conf.Positional[tuple[str, ...]],
    scale: Literal["paper", "gpu-hour", "laptop"] = "laptop",
    environments: tuple[str, ...] = (),
    out: Path = Path("reproduction"),
    data: Path | None = None,
    results: Path | None = None,
    plan: bool = False,
    redraw: bool = False,
    launch: Literal["local", "ray", "slurm"] = "local",
    address: str = "auto",
    sbatch: Repeatable = (),
) -> None:
    """Make figures and tables of SORL's paper: what exists is not made again.

    TARGETS are figure1 ... figure5, table1, table2, tables3-5, theorem2, or all. Runs are shared
    between targets and kept in folders named after what they are; the same command goes on where it
    was stopped. Each target leaves a page with its figure, what it shows, the paper's trend beside
    it, and the rows that it is made of.

    Args:
        targets: what to reproduce.
        scale: paper (1M updates, 4 x 512 units, 8 environments), gpu-hour (about an hour of one
            modern GPU for a figure) or laptop (half an hour of two cores for figure 1, hours for
            table 1).
        environments: these of the scale's data sets alone, such as cube-single-play-v0; none means
            all of them. Targets of `all` that use none of them are left out.
        out: folder of runs and measurements.
        data: folder of data sets, made there where they are missing, or at scale paper downloaded;
            without it OUT/data, or ~/.ogbench/data.
        results: folder of the results; without it OUT/SCALE.
        plan: only tell the runs, what is done, and what they cost here.
        redraw: draw from the rows in the results alone; nothing is run.
        launch: where runs are made: local (one on each core or GPU of this machine), ray (on a
            running Ray cluster), or slurm (make or fetch the data here, write an array script and
            stop).
        address: of the Ray cluster, HOST:PORT of its head.
        sbatch: an option of the array script, such as --sbatch=--gres=gpu:1; once for each.
    """
    from sorl import files
    from sorl.console import show_progress
    from sorl.data.sources import DEFAULT_FOLDER
    from sorl.experiments import reproduce
    from sorl.experiments.scales import scale as scale_of
    from sorl.runs import locked

    size = scale_of(scale).narrowed(environments)
    task = reproduce.Reproduction(
        targets=reproduce.chosen(targets, size),
        scale=size,
        store=out,
        data=data or (DEFAULT_FOLDER.expanduser() if size.generated is None else out / "data"),
        results=out / scale if results is None else results,
    )
    if plan:
        _plan(task)
        return
    if redraw:
        for target in task.targets:
            reproduce.redraw(task, target)
            print(f"wrote {task.results / target}")
        return

    def launched(works: Sequence[Work]) -> Sequence[Standing]:
        if launch == "ray":
            from sorl.launch import ray_cluster

            return ray_cluster.launch(works, address=address)
        from sorl.launch import local

        return local.launch(works)

    # Two launchers would write each other's works.
    with files.explained("create", task.store):
        task.store.mkdir(parents=True, exist_ok=True)
    with locked(task.store):
        if launch == "slurm":
            _write_slurm(task, list(itertools.chain(*sbatch)))
            return
        standings, drawn = reproduce.reproduce(task, launched, show_progress)
    for target in drawn:
        print(f"wrote {task.results / target}")
    _tell(standings)


def _plan(task: Reproduction) -> None:
    """The runs with their state, cost in FLOPs and time."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from sorl.experiments import cost, experiment
    from sorl.experiments.scales import scale as scale_of
    from sorl.launch.local import slots_here
    from sorl.launch.progress import updates_done

    cells = task.cells()
    works = task.works(cells)
    table = Table(box=SIMPLE_HEAD)
    for head in ("run", "varied", "seeds", "tasks", "updates done", "cost", "time left here"):
        table.add_column(head, justify="left" if head in ("run", "varied") else "right")
    pieces = {target: task.pieces(target) for target in task.targets}
    usual = (cells or experiment("figure1").cells(scale_of(task.scale.name)))[0]
    rate = cost.seconds_per_flop(usual) if cells or any(pieces.values()) else 0.0
    total = left = disk = 0.0
    for cell, work in zip(cells, works, strict=True):
        flops = cost.flops_of_run(cell)
        whole = work.done()
        done = work.job.updates if whole else updates_done(work)[0]
        seconds = rate * flops * (1 - done / work.job.updates)
        total, left = total + flops, left + seconds
        disk += cost.checkpoint_bytes(cell)
        table.add_row(
            cell.name,
            cell.varied,
            str(cell.seeds),
            str(len(cell.tasks)),
            "done" if whole else f"{done:,}/{work.job.updates:,}",
            cost.readable(flops),
            cost.duration(seconds),
        )
    Console(width=10_000, highlight=False).print(table)
    print(task.scale.describe())
    if cells:
        places = len(slots_here(len(works)))
        print(
            f"{len(cells)} runs, {cost.readable(total)}; {cost.duration(left)} of training left "
            "at the rate that the first run's program reaches here, all cores taken together "
            f"({1e-9 / rate:,.0f} GFLOP/s); {places} run at a time. Evaluation comes on top. "
            f"Their checkpoints take {disk / 1e9:,.1f} GB."
        )
    for target, mine in pieces.items():
        measurement = experiment(target).measurement
        if mine and measurement is not None:
            remaining = sum(measurement.flops(p.setting) for p in mine if not p.done())
            print(
                f"{target}: {sum(p.done() for p in mine)} of {len(mine)} measurements made; the "
                f"others take {cost.readable(remaining)}, {cost.duration(rate * remaining)} at "
                "that rate, one after the other on this machine."
            )


def _write_slurm(task: Reproduction, options: Sequence[str]) -> None:
    from sorl.console import show_progress
    from sorl.experiments.reproduce import prepare_data
    from sorl.launch import slurm

    works = prepare_data(task, task.cells(), show_progress)
    script = slurm.write(works, task.store / "array.sbatch", options=options)
    print(f"wrote {script}: submit it, then run the same command with --launch local to draw.")


def _tell(standings: Sequence[Standing]) -> None:
    """Say what is missing.

    Raises:
        InputError: a run failed.
    """
    from sorl.errors import InputError

    failed = [standing for standing in standings if standing.state == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(standings)} runs failed, {failed[0].work.name} first: "
            f"{failed[0].message}"
        )
    if any(standing.state != "done" for standing in standings):
        print("Stopped with everything saved; the same command goes on.")
