"""Write imported rows as the `.npz` that `sorl train` reads; its bytes depend on them alone."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sorl import files
from sorl.data.episodes import Logged
from sorl.data.generate.archive import write_atomically
from sorl.data.origin import ARRAY, Origin, encode

# A zip entry carries a date. The earliest there is makes equal arrays equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_dataset(path: Path, logged: Logged, origin: Origin) -> None:
    """Write `path`, replacing an earlier file in one step.

    Raises:
        InputError: the disk is full, or writing is not permitted.
    """
    arrays = {
        "observations": logged.observations,
        "actions": origin.units.network_actions(logged.actions),
        "terminals": logged.ends,
        "rewards": logged.rewards,
        "masks": logged.masks,
        ARRAY: encode(origin),
    }
    if logged.images is not None:
        beside = logged.observations.shape[1] > 0
        arrays["images" if beside else "observations"] = logged.images

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(
                        cast(BinaryIO, member), np.ascontiguousarray(array), allow_pickle=False
                    )

    with files.explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
