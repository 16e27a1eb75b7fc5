"""Copies of a run's rows for dashboards: TensorBoard where installed, Weights & Biases by flag.

The run's own tables are the truth; a dashboard only shows them while they grow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sorl.errors import InputError

_COORDINATES = ("update", "task", "seed", "budget")


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
            InputError: a dashboard that was asked for is not installed.
        """
        check_dashboards(tensorboard=tensorboard, wandb=wandb)
        self._writer = None
        if tensorboard or (tensorboard is None and _installed("tensorboardX")):
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))
        self._wandb_run = None
        if wandb:
            # Found by name: the package is optional, and absent where types are checked.
            module = importlib.import_module("wandb")
            self._wandb_run = module.init(
                project="sorl", name=folder.name, dir=str(folder), config=dict(config)
            )

    def record(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show rows of `metrics`, `timing` or `evaluations`; each names its `update`."""
        for row in rows:
            update = int(row["update"])
            numbers = {f"{_place(table, row)}/{name}": value for name, value in _numbers(row)}
            if self._writer is not None:
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, update)
            if self._wandb_run is not None:
                # The update travels as a value: their own step counter may not go back, ours
                # does when evaluations follow later metrics or a run is resumed.
                self._wandb_run.log({**numbers, "update": update})
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish writing; calling it twice does no harm."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
    return [
        (name, float(value))
        for name, value in row.items()
        if name not in _COORDINATES and not isinstance(value, str)
    ]
