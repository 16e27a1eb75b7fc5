"""Copies of a run's rows for dashboards: TensorBoard where installed, Weights & Biases by flag.

The run's own tables are the truth; a dashboard only shows them while they grow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sorl.errors import InputError

_COORDINATES = ("update", "task", "seed", "budget")


class DashboardWarning(UserWarning):
    """A dashboard shows no more of the run."""


class Recorder:
    """Writes every number of a row under `<table>/task<T>-seed<S>[/<budget>]/<column>`.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        tensorboard: bool | None = None,
        wandb: bool = False,
    ) -> None:
        """Open the dashboards.

        Args:
            folder: the run's folder; TensorBoard's files go to `tensorboard/` in it.
            config: the run's settings, shown by Weights & Biases.
            tensorboard: write TensorBoard's files; None means where tensorboardX is installed.
            wandb: send to Weights & Biases too.

        Raises:
            InputError: a dashboard that was asked for is not installed or cannot be started.
        """
        check_dashboards(tensorboard=tensorboard, wandb=wandb)
        self._tensorboard: _EventFile | None = None
        if tensorboard or (tensorboard is None and _installed("tensorboardX")):
            with self._expendable():
                self._tensorboard = _EventFile(folder / "tensorboard")
        self._wandb_run = None
        if wandb:
            # Found by name: the package is optional, and absent where types are checked.
            module = importlib.import_module("wandb")
            try:
                self._wandb_run = module.init(
                    project="sorl", name=folder.name, dir=str(folder), config=dict(config)
                )
            except module.Error as error:
                first = next(iter(str(error).splitlines()), type(error).__name__)
                raise InputError(
                    f"Weights & Biases cannot be started ({first}): log in by `wandb login`, or "
                    f"set WANDB_MODE=offline, and go on by `sorl resume {folder}`."
                ) from error

    def record(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show rows of `metrics`, `timing` or `evaluations`; each names its `update`."""
        for row in rows:
            update = int(row["update"])
            numbers = {f"{_place(table, row)}/{name}": value for name, value in _numbers(row)}
            if self._tensorboard is not None:
                with self._expendable():
                    for name, value in numbers.items():
                        self._tensorboard.add(name, value, update)
            if self._wandb_run is not None:
                # The update travels as a value: their own step counter may not go back, ours
                # does when evaluations follow later metrics or a run is resumed.
                self._wandb_run.log({**numbers, "update": update})
        if self._tensorboard is not None:
            with self._expendable():
                self._tensorboard.flush()

    def close(self) -> None:
        """Finish writing; calling it twice does no harm."""
        if self._tensorboard is not None:
            with self._expendable():
                self._tensorboard.close()
            self._tensorboard = None
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    @contextlib.contextmanager
    def _expendable(self) -> Iterator[None]:
        """Give TensorBoard up where its file cannot be written: training goes on."""
        try:
            yield
        except OSError as error:
            if self._tensorboard is not None:
                with contextlib.suppress(OSError):
                    self._tensorboard.close()
            self._tensorboard = None
            warnings.warn(
                DashboardWarning(
                    f"TensorBoard gets no more numbers, for its file cannot be written ({error}); "
                    "the run's own tables have them all."
                ),
                stacklevel=3,
            )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _EventFile:
    """TensorBoard's file of one process, written by the caller.

    tensorboardX's own writer hands all over to a thread, which a full disk ends; then the queue
    before it fills, and whoever adds to it waits for ever.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")

    def add(self, name: str, value: float, update: int) -> None:
        """Write a number."""
        from tensorboardX.summary import scalar

        self._write(step=update, summary=scalar(name, value))

    def flush(self) -> None:
        """Bring what was written to disk."""
        self._records.flush()

    def close(self) -> None:
        """Do that, and close the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        made: Any = event_pb2  # its classes are made when it is imported, unseen by type checkers
        self._records.write(made.Event(wall_time=time.time(), **content).SerializeToString())


def check_dashboards(*, tensorboard: bool | None, wandb: bool) -> None:
    """Raise `InputError` when a dashboard that was asked for is not installed."""
    if tensorboard and not _installed("tensorboardX"):
        raise InputError(
            "TensorBoard was asked for, but tensorboardX is not installed: install "
            "sorl[tensorboard], or leave it out."
        )
    if wandb and not _installed("wandb"):
        raise InputError(
            "Weights & Biases was asked for, but wandb is not installed: install sorl[wandb], "
            "or leave it out."
        )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _place(table: str, row: Mapping[str, Any]) -> str:
    parts = [table]
    if "task" in row and "seed" in row:
        parts.append(f"task{int(row['task'])}-seed{int(row['seed'])}")
    if "budget" in row:
        parts.append(str(row["budget"]))
    return "/".join(parts)


def _numbers(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What dashboards can draw; of what is not known, such as a mean of no episodes, they warn."""
    return [
        (name, float(value))
        for name, value in row.items()
        if name not in _COORDINATES and not isinstance(value, str) and math.isfinite(value)
    ]
