"""The file format: an .npz whose bytes depend on the arrays alone, merged episode by episode."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sorl.data.generate.rows import Rows

# A zip entry carries a date. The earliest there is makes equal arrays equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, and move it there when it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_part(path: Path, rows: Rows) -> None:
    """Write one episode, uncompressed."""
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **rows))


def is_whole_part(path: Path, rows: int) -> bool:
    """Whether `path` holds an episode of `rows` rows, written to its end."""
    try:
        # NumPy leaves a file open that it opened and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            terminals = arrays["terminals"]
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return False
    return len(terminals) == rows and bool(terminals[-1])


def merge_parts(
    parts: Sequence[Path], path: Path, *, rows: int, on_rows: Callable[[int], object]
) -> None:
    """Concatenate parts of `rows` rows each, in their order, into the compressed archive `path`.

    Every array passes through the memory one part at a time. `on_rows` hears how many rows have
    been written since it was last called; a row counts when all its arrays are written.
    """
    with np.load(parts[0], allow_pickle=False) as first:
        layout = {key: (first[key].dtype, first[key].shape[1:]) for key in first.files}
    total = rows * len(parts)

    def write(file: BinaryIO) -> None:
        written = reported = 0
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, (dtype, shape) in layout.items():
                entry = zipfile.ZipInfo(f"{key}.npy", _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (total, *shape)}
                    np.lib.format.write_array_header_1_0(cast(BinaryIO, member), header)
                    for part in parts:
                        with np.load(part, allow_pickle=False) as arrays:
                            member.write(np.ascontiguousarray(arrays[key], dtype).tobytes())
                        written += rows
                        on_rows(written // len(layout) - reported)
                        reported = written // len(layout)

    write_atomically(path, write)
