"""Parquet by pyarrow: one row a step, as in LeRobot's data sets (any number of files).

LeRobot's columns: observation.state, action, episode_index, frame_index, next.reward, next.done.
Lists of numbers become rows of an array; columns of pictures and text are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sorl.data.importing.log import Log, damaged_if_it_raises
from sorl.errors import InputError


@dataclasses.dataclass(frozen=True)
class ParquetLog(Log):
    """A table."""

    def stretches(self, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """One stretch: all rows."""
        parquet = _pyarrow("parquet")
        with damaged_if_it_raises(self.path):
            with parquet.ParquetFile(self.path) as file:
                table = file.read(columns=list(wanted))
            arrays = {name: _numbers(self.path, name, table.column(name)) for name in wanted}
        yield arrays


def open_log(path: Path) -> ParquetLog:
    """Open a file and list its columns of numbers.

    Raises:
        InputError: pyarrow is not installed, or the file cannot be read.
    """
    parquet = _pyarrow("parquet")
    with damaged_if_it_raises(path):
        schema = parquet.read_schema(path)
        keys = {field.name: shape for field in schema if (shape := _shape(field.type)) != (-1,)}
    return ParquetLog(path, keys)


def _shape(kind: Any) -> tuple[int, ...] | None:
    """Entries of one row; None where their number is not fixed, (-1,) where they are no numbers."""
    types = _pyarrow("types")
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return ()
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return (-1,)
    inner = _shape(kind.value_type)
    if inner == (-1,):
        return inner
    if types.is_fixed_size_list(kind) and inner is not None:
        return (kind.list_size, *inner)
    return None


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """A column as an array with one axis for the rows and one for each depth of lists."""
    types = _pyarrow("types")
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} empty cells; fill or drop them.")
    array = column.combine_chunks()
    sizes = [len(array)]
    while types.is_nested(array.type):
        found = _pyarrow("compute").list_value_length(array).unique().to_pylist()
        lengths = set(found) or {0}
        if len(lengths) != 1:
            raise InputError(
                f"{path}: {name} has rows of {min(lengths)} to {max(lengths)} entries, but all "
                "must have as many."
            )
        sizes.append(lengths.pop())
        array = array.flatten()
        if array.null_count:
            raise InputError(f"{path}: {name} has {array.null_count} empty entries; fill them.")
    return array.to_numpy(zero_copy_only=False).reshape(sizes)


def _pyarrow(module: str) -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
        import pyarrow.types
    except ImportError as error:
        raise InputError(
            f"Parquet files need a package that is not installed ({error}): pip install "
            "'sorl[parquet]'."
        ) from error
    return getattr(pyarrow, module)
