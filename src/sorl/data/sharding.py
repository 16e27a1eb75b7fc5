"""Make a folder of shards: one shard of each file, so that memory need hold one file alone.

OGBench publishes its largest sets as folders of files of a million transitions each; such a folder
is taken as it is, without the validation files in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sorl import files
from sorl.data.archive import ArchiveReader
from sorl.data.checks import check_once
from sorl.data.dataset import Dataset
from sorl.data.names import NUMBER_OF_TASKS, EnvironmentName
from sorl.data.shards import (
    MANIFEST,
    MOST_TRANSITIONS,
    Manifest,
    Shard,
    Shards,
    open_shards,
    record_of,
)
from sorl.data.sources import load_dataset
from sorl.errors import InputError


def make_shards(
    sources: Sequence[Path],
    out: Path | str,
    *,
    environment: str | None = None,
    tasks: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shards:
    """Write a folder of shards; the same call goes on with one that was interrupted.

    Args:
        sources: `.npz` files of one kind of data, or folders of them, whose files are taken in the
            order of their names, those that end in `-val.npz` left out. Each may come once.
        out: folder to make or to complete.
        environment: OGBench name, for files without rewards.
        tasks: tasks whose rewards are kept; with an environment all five when None.
        on_progress: called with how many files are done, and how many there are.

    Raises:
        InputError: a file that cannot be used, or that differs in kind from the first one; images;
            too many transitions; or `out` holds something else.
    """
    out, paths = Path(out).expanduser(), _files_of(sources)
    name = None if environment is None else EnvironmentName.parse(environment)
    label = None if name is None else name.dataset
    if tasks is None:
        tasks = (0,) if name is None else range(1, 1 + NUMBER_OF_TASKS)
    made = _begun(out, paths, label, tuple(tasks))
    known = () if made is None else made.shards
    with files.explained("write", out):
        out.mkdir(parents=True, exist_ok=True)
    on_progress(len(known), len(paths))
    for index in range(len(known), len(paths)):
        dataset = load_dataset(environment, data=paths[index], tasks=tasks)
        _check_kind(made, dataset, paths[index])
        if made is None:
            made = Manifest(dataset.spec, label, dataset.tasks, dataset.units, len(paths), ())
            made.write(out)
        shard = _write(out / f"{index:05d}", paths[index], dataset)
        made = made._replace(shards=(*made.shards, shard))
        if sum(shard.transitions for shard in made.shards) > MOST_TRANSITIONS:
            raise InputError(
                f"{paths[index]}: with this file there are more than {MOST_TRANSITIONS:,} "
                "transitions: leave files out."
            )
        made.write(out)
        on_progress(index + 1, len(paths))
    return open_shards(out)


def _files_of(sources: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for source in (Path(path).expanduser() for path in sources):
        if not source.is_dir():
            found.append(source)
            continue
        inside = sorted(it for it in source.glob("*.npz") if not it.name.endswith("-val.npz"))
        if not inside:
            raise InputError(f"{source} holds no .npz files: name another folder, or files.")
        found += inside
    if not found:
        raise InputError("Name at least one .npz file, or a folder of them.")
    check_once([str(path) for path in found])
    return found


def _begun(
    out: Path, paths: Sequence[Path], label: str | None, tasks: tuple[int, ...]
) -> Manifest | None:
    """What an earlier call has made, if it was to make the same."""
    if not (out / MANIFEST).is_file():
        with files.explained("read", out):
            if out.is_dir():
                files.remove_leftovers(out)  # a kill may have come before the first shards.json
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise InputError(f"{out} is there and holds no shards: choose another --out.")
        return None
    made = Manifest.read(out)
    with files.explained("read", paths[0].parent):
        now = [(path.name, path.stat().st_size) for path in paths]
    before = [(shard.source, shard.bytes) for shard in made.shards]
    same = (made.environment, made.tasks, made.files) == (label, tasks, len(paths))
    if not same or before != now[: len(before)]:
        raise InputError(
            f"{out} holds shards of other files, tasks or another environment: choose another "
            "--out, or remove it."
        )
    for shard, path in zip(made.shards, paths, strict=False):
        # A corrected file is often as large as before.
        if shard.contents not in ("", ArchiveReader(path).contents):
            raise InputError(
                f"{path} is another file than when {out} was begun: choose another --out, or "
                "remove that."
            )
    return made


def _check_kind(made: Manifest | None, dataset: Dataset, path: Path) -> None:
    if dataset.images is not None:
        raise InputError(f"{path} holds images, and only states can be streamed so far.")
    if made is not None and (dataset.spec, dataset.units) != (made.spec, made.units):
        raise InputError(
            f"{path} differs from the files before it in the sizes or units of observations or "
            "actions: import files of your own together, or with --like."
        )


def _write(folder: Path, path: Path, dataset: Dataset) -> Shard:
    ends = np.asarray(dataset.ends)
    rows = np.zeros(len(ends), record_of(dataset.spec, len(dataset.tasks)))
    rows["observation"] = np.asarray(dataset.observations)
    rows["action"] = np.asarray(dataset.actions)
    rows["reward"] = np.asarray(dataset.rewards).T
    rows["mask"] = np.asarray(dataset.masks).T
    rows["end"] = ends
    last = np.flatnonzero(ends)
    with files.explained("write", folder), files.new_folder(folder) as new:
        np.save(new / "rows.npy", rows, allow_pickle=False)
        np.save(new / "ends.npy", last, allow_pickle=False)
    told = dataset.statistics().tasks
    return Shard(
        name=folder.name,
        source=path.name,
        bytes=path.stat().st_size,
        contents=ArchiveReader(path).contents,
        rows=len(rows),
        episodes=len(last),
        largest_rewards=tuple(np.asarray(dataset.largest_rewards).tolist()),
        success_rows=tuple(task.success_rows for task in told),
        fingerprint=dataset.fingerprint,
    )
