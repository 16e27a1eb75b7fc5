"""Read arrays from an `.npz` file: never a pickle, every checksum verified, array by array."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sorl.errors import InputError


class ArchiveReader:
    """The named arrays of one `.npz` file; only those asked for are read.

    Args:
        path: the file.

    Attributes:
        path: the file.
        names: its arrays.
        contents: SHA-256 in hexadecimal over the names and CRC-32s of its entries, which tells
            files of different content apart without reading them.

    Raises:
        InputError: the file is missing, cannot be opened, or is no readable zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file.") from None
        except IsADirectoryError:
            raise InputError(f"{path}: this is a folder; name the .npz file.") from None
        except PermissionError:
            raise InputError(f"{path}: no permission to read this file.") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}).") from None
        except Exception:  # zipfile raises a dozen kinds of exception on damaged directories
            raise InputError(
                f"{path}: not a readable .npz file; it is truncated, damaged or of another kind."
            ) from None
        members = [entry.filename for entry in entries]
        self.names = tuple(name.removesuffix(".npy") for name in members if name.endswith(".npy"))
        told = repr(sorted((entry.filename, entry.CRC) for entry in entries))
        self.contents = hashlib.sha256(told.encode()).hexdigest()

    def require(self, *names: str) -> None:
        """Check that the file holds these arrays.

        Raises:
            InputError: some are missing; the message names them and what was found.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            found = ", ".join(self.names) if self.names else "no arrays"
            raise InputError(f"{self.path}: lacks {', '.join(missing)}; the file holds {found}.")

    def read(self, name: str) -> npt.NDArray:
        """Read one array and verify its checksum.

        Raises:
            InputError: the file lacks it, it is damaged, or it holds pickled Python objects.
        """
        self.require(name)
        try:
            # NumPy warns of files written by Python 2, which it can read.
            with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(self.path) as archive:
                size = archive.getinfo(f"{name}.npy").file_size
                with archive.open(f"{name}.npy") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                    # zipfile compares checksums only where the data end: go there.
                    rest = stream.read(1)
        except MemoryError:
            raise InputError(
                f"{self.path}: {name} needs more memory than there is, or the file is damaged."
            ) from None
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged data
            if "allow_pickle" in str(error):
                raise InputError(
                    f"{self.path}: {name} holds pickled Python objects, which are never loaded; "
                    "store plain numbers."
                ) from None
            raise InputError(
                f"{self.path}: {name} is damaged or truncated ({_first_line(error)})."
            ) from None
        if rest or size < array.nbytes:
            raise InputError(f"{self.path}: {name} is damaged: its size contradicts its header.")
        return array

    def verify(self) -> None:
        """Read the whole file once and compare every checksum.

        Raises:
            InputError: some array is damaged or truncated.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()
        except Exception as error:  # as above
            raise InputError(f"{self.path}: damaged or truncated ({_first_line(error)}).") from None
        if damaged is not None:
            raise InputError(f"{self.path}: {damaged.removesuffix('.npy')} is damaged.")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".")[:120] if lines else type(error).__name__
