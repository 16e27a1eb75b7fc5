"""Make figures and tables: data, runs, measurements, then rows and pages; called again, go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from sorl import files
from sorl.data.archive import ArchiveReader
from sorl.data.generate import generate
from sorl.data.generate import show_progress as show_generation
from sorl.data.sources import locate
from sorl.errors import InputError
from sorl.experiments import TARGETS, experiment, measurements, results, rows, trained_data
from sorl.experiments.cells import Cell, data_files, merged
from sorl.experiments.experiment import OnProgress
from sorl.experiments.scales import Scale
from sorl.experiments.scales import scale as scale_of
from sorl.launch.progress import Standing
from sorl.launch.work import Work
from sorl.runs import Run

Launch = Callable[[Sequence[Work]], Sequence[Standing]]
"""Does all works, somewhere, and says how each stands."""

Progress = Callable[[str], AbstractContextManager[OnProgress]]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What is reproduced, and where its parts are.

    Attributes:
        targets: names in `TARGETS`, each once.
        scale: the scale.
        store: folder of runs and measurements.
        data: folder of the data sets.
        results: folder of the results, one folder a target in it.
    """

    targets: tuple[str, ...]
    scale: Scale
    store: Path
    data: Path
    results: Path

    def cells(self) -> list[Cell]:
        """The runs of all targets, each once."""
        return merged(cell for name in self.targets for cell in experiment(name).cells(self.scale))

    def works(self, cells: Sequence[Cell] | None = None) -> list[Work]:
        """What makes them, in the same order."""
        cells = self.cells() if cells is None else cells
        data = data_files(cells, self.data)
        return [cell.work(self.store, data[cell.dataset]) for cell in cells]

    def pieces(self, target: str) -> list[measurements.Piece]:
        """What a target measures."""
        measurement = experiment(target).measurement
        if measurement is None:
            return []
        return measurements.pieces(self.store, target, measurement, self.scale)


def chosen(names: Sequence[str], scale: Scale) -> tuple[str, ...]:
    """The targets of these names; `all` means every one that uses a data set of the scale, if any.

    Raises:
        InputError: an unknown name, or none, or a target that uses none of the data sets that the
            scale was narrowed to.
    """
    if not names:
        raise InputError(f"Name what to reproduce: {', '.join(TARGETS)} or all.")
    every = tuple(TARGETS) if "all" in names else tuple(dict.fromkeys(names))
    whole = scale_of(scale.name)
    found = []
    for name in every:
        used = [cell.dataset for cell in experiment(name).cells(whole)]
        if used and not experiment(name).cells(scale):
            if "all" in names:
                continue
            raise InputError(
                f"{name} uses none of {', '.join(scale.only)} at scale {scale.name}: it is of "
                f"{', '.join(dict.fromkeys(used))}."
            )
        found.append(name)
    return tuple(found)


def reproduce(
    task: Reproduction, launch: Launch, progress: Progress
) -> tuple[list[Standing], list[str]]:
    """Make what is missing and draw everything.

    A target of which a run is missing, because it failed or the user stopped, is not drawn.

    Args:
        task: what to make.
        launch: does the runs.
        progress: where to show measurements.

    Returns:
        How the runs stand, and the targets that were drawn.

    Raises:
        InputError: a measurement needs what is not installed, results would take the place of
            those of more data sets or of another scale, see `prepare_data`, or whatever a
            measurement raises.
        WorkerError: see `prepare_data`.
    """
    for target in task.targets:
        measurement = experiment(target).measurement
        if measurement is not None:
            measurement.check()  # before hours of training
        results.check_room(task.results / target, task.scale)
    cells = task.cells()
    works = prepare_data(task, cells, progress)
    standings = list(launch(works)) if works else []
    if all(standing.state in ("done", "failed") for standing in standings):  # else we shall stop
        # Speed is measured when no run of ours is at work.
        for target in task.targets:
            for piece in task.pieces(target):
                if not piece.done():
                    measurement = experiment(target).measurement
                    assert measurement is not None  # it has pieces
                    with progress(f"measuring {target}") as on_progress:
                        measurements.measure(piece, measurement, on_progress)
    ended = {standing.work.folder.name for standing in standings if standing.state == "done"}
    drawn = []
    for target in task.targets:
        mine = merged(experiment(target).cells(task.scale))
        whole = all(cell.name in ended for cell in mine)
        if whole and all(piece.done() for piece in task.pieces(target)):
            keep(task, target)
            redraw(task, target)
            drawn.append(target)
    return standings, drawn


def prepare_data(task: Reproduction, cells: Sequence[Cell], progress: Progress) -> list[Work]:
    """Generate or download the data sets that runs lack, and check those that are there.

    Returns:
        The works of the cells, whose runs, where they are there, are of these data.

    Raises:
        InputError: a data set that cannot be generated or downloaded, a folder that cannot be
            written, a file of another size than the scale's, or of other data than a run was
            trained on.
        WorkerError: the process that loads a file died.
    """
    works = task.works(cells)
    for path in data_files(cells, task.data).values():
        if path.exists() and task.scale.generated is not None:
            _check_episodes(path, task.scale)
    lacking = [cell for cell, work in zip(cells, works, strict=True) if not work.done()]
    for name, path in data_files(lacking, task.data).items():
        # Here and not by the runs, which may be on machines without the internet.
        if task.scale.generated is None:
            locate(name, folder=path.parent)
        elif not path.exists():
            with show_generation() as on_progress:
                generate(
                    name, out=path.parent, episodes=task.scale.generated, on_progress=on_progress
                )
    if begun := trained_data.comparable(works):
        with progress("comparing data with runs") as on_progress:
            trained_data.check(begun, on_progress)
    return works


def _check_episodes(path: Path, scale: Scale) -> None:
    episodes = np.count_nonzero(ArchiveReader(path).read("terminals"))
    if episodes != scale.generated:
        raise InputError(
            f"{path} holds {episodes:,} episodes, but scale {scale.name} takes "
            f"{scale.generated:,}: name another folder by --data, where they are made if they are "
            "missing."
        )


def keep(task: Reproduction, target: str) -> None:
    """Collect the rows of a target whose runs and measurements are all there."""
    mine = merged(experiment(target).cells(task.scale))
    folders = [work.run for work in task.works(mine)]
    pieces = task.pieces(target)
    collected = rows.collect(zip(mine, folders, strict=True))
    found = rows.Rows([*collected.rows, *measurements.rows(pieces)])
    made: list[Mapping[str, Any]] = [Run.open(folder).config for folder in folders]
    made += [files.read_json(piece.origin) for piece in pieces]
    origin = results.origin_of(experiment(target), task.scale, found, made)
    results.keep(task.results / target, found, origin)


def redraw(task: Reproduction, target: str) -> None:
    """Draw a target from its kept rows alone."""
    results.draw(task.results / target, target, experiment(target), task.scale)
