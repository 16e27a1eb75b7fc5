"""Import: find the files, read them by their format, put episodes together, write, and report."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sorl import files
from sorl.data.archive import ArchiveReader
from sorl.data.columns import Columns, columns_of, matrix
from sorl.data.episodes import RewardRule, assemble
from sorl.data.images import NO_STANDARDISING
from sorl.data.importing.ends import with_meaning
from sorl.data.importing.keys import Mapped, assign_alike, parse_keys
from sorl.data.importing.log import Log
from sorl.data.importing.writing import write_dataset
from sorl.data.inspection import Inspection, inspect
from sorl.data.origin import Origin, read_origin
from sorl.data.ranges import Bound, learn_units
from sorl.errors import InputError
from sorl.units import Units

_FORMATS = {
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".parquet": "parquet",
    ".csv": "csv_table",
    ".tsv": "csv_table",
}


class Imported(NamedTuple):
    """What an import has made.

    Attributes:
        path: the data set.
        report_path: the report as JSON.
        origin: what the data set says of itself.
        report: what is in it, and what looks wrong.
    """

    path: Path
    report_path: Path
    origin: Origin
    report: Inspection


def import_files(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    keys: Sequence[str] = (),
    rewards: RewardRule = "logged",
    action_low: Bound = None,
    action_high: Bound = None,
    standardize: bool = False,
    like: Path | str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Import files of one log into `OUT.npz`, with a report in `OUT.report.json`.

    Args:
        paths: files, or folders whose files of one format are meant, in the order of their names;
            of LeRobot's folders those in `data`.
        out: name of the data set, with or without `.npz`.
        keys: what arrays mean where their names do not tell, such as
            `observations=obs/state,obs/goal`.
        rewards: where rewards come from, see `sorl.data.episodes`.
        action_low: as for `sorl.Dataset.from_episodes`.
        action_high: likewise.
        standardize: likewise.
        like: a data set whose units are taken, so that both can be mixed; instead of the three
            arguments before.
        overwrite: replace a data set or a report that is there, if it is none of the files.
        on_progress: called with how many files are read and how many there are.

    Raises:
        InputError: a file that cannot be read or understood, data that cannot be used, or `out` is
            there already. Nothing is written then.
    """
    out = Path(out).expanduser()
    path = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    report_path = path.with_name(f"{path.stem}.report.json")
    found = _files(paths)
    for there in filter(os.path.exists, (path, report_path)):
        if any(os.path.samefile(there, file) for file in found):
            raise InputError(f"{there} is the log itself: choose another --out.")
        if not overwrite:
            raise InputError(f"{there} is there already: choose another --out, or --overwrite it.")
        if there.is_dir():
            raise InputError(f"{there} is a folder: choose another --out.")
    replacing = path.exists()
    if like is not None and (standardize or action_low is not None or action_high is not None):
        raise InputError(
            "A data set that units are taken from decides ranges and standardisation: leave them "
            "out, or leave out --like."
        )
    units = None if like is None else _units_of(Path(like).expanduser())
    given = parse_keys(keys)
    logs = [_open(file) for file in found]
    mapped = assign_alike(logs, given)
    source = str(found[0]) if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"

    def stretches() -> Iterator[Columns]:
        for number, log in enumerate(logs):
            on_progress(number, len(logs))
            yield from _columns(log, mapped, given)
        on_progress(len(logs), len(logs))

    logged = assemble(stretches(), rewards=rewards, source=source)
    if logged.images is not None and (standardize or (units is not None and units.standardises)):
        raise InputError(f"{source}: {NO_STANDARDISING}")
    if units is None:
        units = learn_units(
            logged.observations,
            logged.actions,
            action_low=action_low,
            action_high=action_high,
            standardize=standardize,
            source=source,
        )
    else:
        units.check_sizes(logged.observations.shape[1], logged.actions.shape[1])
        learn_units(
            logged.observations,
            logged.actions,
            action_low=units.action_low or -1,
            action_high=units.action_high or 1,
            source=source,
            remedy=f"import the files of {like} anew with --action-low and --action-high for both",
        )
    origin = Origin(
        units,
        rewards,
        {role: list(names) for role, names in mapped.items()},
        tuple({"file": str(file), "bytes": file.stat().st_size} for file in found),
    )
    used = {name for names in mapped.values() for name in names}
    there = dict.fromkeys(key for log in logs for key in log.keys)
    report = inspect(logged, units, unused=[key for key in there if key not in used])
    write_dataset(path, logged, origin)
    try:
        files.write_json(report_path, {"data": path.name, "keys": origin.keys, **report.as_json()})
    except BaseException:
        if not replacing:
            path.unlink()
        raise
    return Imported(path, report_path, origin, report)


def _files(paths: Sequence[Path | str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.is_dir():
            found.append(path)
            continue
        if (path / "meta").is_dir() and (path / "data").is_dir():
            path /= "data"  # LeRobot keeps tables about its data beside them
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _FORMATS)
        kinds = {_FORMATS[file.suffix.lower()] for file in inside}
        if len(kinds) != 1:
            what = "no file" if not kinds else "files of several kinds"
            raise InputError(
                f"{path}: this folder holds {what} of those that can be imported "
                f"({', '.join(_FORMATS)}): name the files."
            )
        found += inside
    if not found:
        raise InputError("Name at least one file to import.")
    for file in found:
        if file.suffix.lower() not in _FORMATS:
            raise InputError(
                f"{file}: files named *{file.suffix} cannot be imported; use {', '.join(_FORMATS)}."
            )
        if not os.path.exists(file):
            raise InputError(f"{file}: there is no such file.")
    return found


def _open(path: Path) -> Log:
    module = importlib.import_module(f"sorl.data.importing.{_FORMATS[path.suffix.lower()]}")
    return module.open_log(path)


def _columns(log: Log, mapped: Mapped, given: Mapped) -> Iterator[Columns]:
    wanted = list(dict.fromkeys(name for names in mapped.values() for name in names))
    for number, arrays in enumerate(log.stretches(wanted)):
        source = f"{log.path}, episode {number}" if log.whole else str(log.path)
        roles = {role: _joined(source, role, names, arrays) for role, names in mapped.items()}
        columns = columns_of(source, roles, whole=log.whole)
        yield _in_order(source, with_meaning(columns, mapped, given))


def _joined(
    source: str, role: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> np.ndarray | dict[str, np.ndarray]:
    """One array of several, side by side; an image beside others is the image of a state."""
    if len(names) == 1:
        return arrays[names[0]]
    if role not in ("observations", "next_observations", "actions"):
        raise InputError(f"{source}: {role} are one array, not {', '.join(names)}.")
    frames = [name for name in names if _are_images(arrays[name])]
    if len(frames) == 1 and role != "actions":
        image, others = frames[0], [name for name in names if name not in frames]
        return {"image": arrays[image], "state": _side_by_side(source, role, others, arrays)}
    return _side_by_side(source, role, names, arrays)


def _are_images(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4


def _side_by_side(
    source: str, role: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> np.ndarray:
    parts = [matrix(source, name, arrays[name]) for name in names]
    lengths = {name: len(part) for name, part in zip(names, parts, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{source}: the {role} have different numbers of rows: {told}.")
    return np.concatenate(parts, axis=1)


def _in_order(source: str, columns: Columns) -> Columns:
    """Rows of a table by episode and step, where they stand in another order.

    A step that an episode has twice is that of two episodes with one label, as where recordings
    that each count their episodes from 0 are joined. Sorted, they would become one; such a table is
    kept as it stands, if every stretch of rising steps begins where an episode can.

    Raises:
        InputError: episodes share labels and steps, and their rows are mixed up.
    """
    if columns.episodes is None or columns.steps is None or columns.whole:
        return columns
    labels, steps = columns.episodes, columns.steps
    runs = 1 + int((labels[1:] != labels[:-1]).sum())
    same = labels[1:] == labels[:-1]
    rises = steps[1:] > steps[:-1]
    if runs == len(np.unique(labels)) and rises[same].all():
        return columns
    order = np.lexsort((steps, labels))
    twice = (np.diff(labels[order]) == 0) & (np.diff(steps[order]) == 0)
    if not twice.any():
        arrays = columns._asdict().items()
        return columns._replace(
            **{name: array[order] for name, array in arrays if isinstance(array, np.ndarray)}
        )
    begins = np.append(True, ~(same & rises))
    if (steps[begins] != steps.min()).any():
        row = order[1:][twice][0]
        raise InputError(
            f"{source}: several rows are step {steps[row]} of episode {labels[row]}, in an order "
            "that does not tell to which recording each belongs: give every episode a label of its "
            "own, or import each recording from a file of its own."
        )
    return columns


def _units_of(path: Path) -> Units:
    return read_origin(ArchiveReader(path)).units
