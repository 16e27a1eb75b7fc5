"""Checkpoints of a training: complete, crash-safe, verified, without pickle.

    folder/000020000/state/          the arrays, written by orbax
    folder/000020000/metadata.json   update, milestone, names and shapes of the arrays, and
                                     whatever the caller adds
    folder/000020000/SHA256SUMS      digests of all files above (`sha256sum -c` reads it)

A checkpoint appears whole or not at all, and its digests are checked before anything in it is
decoded. The newest three are kept, and every milestone for ever.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sorl import files, leaves
from sorl.errors import InputError

KEPT = 3
FORMAT = 1
_DIGESTS = "SHA256SUMS"

State = TypeVar("State")


class DamagedCheckpointWarning(UserWarning):
    """The newest checkpoint is damaged and an older one was restored instead."""


def save(
    folder: Path,
    update: int,
    state: Any,
    metadata: Mapping[str, Any],
    *,
    milestone: bool = False,
) -> Path:
    """Save `state` as the checkpoint of `update`, then drop the checkpoints no longer kept.

    Checkpoints of later updates are dropped too: a training that went back to an earlier
    checkpoint has one history, not two.

    Args:
        folder: holds the checkpoints of one training; made when missing.
        update: updates done so far, at least 0; an earlier checkpoint of it is replaced.
        state: any pytree; its arrays (of every dtype, and random keys) are saved bit for bit,
            anything else in it is configuration and is not.
        metadata: whatever JSON can hold; `restore` returns it with `update` and `milestone`.
        milestone: keep this checkpoint for ever.

    Returns:
        The folder of the new checkpoint.

    Raises:
        InputError: the disk is full or writing is not permitted; earlier checkpoints are
            untouched and no half checkpoint remains.
    """
    path = folder / f"{update:09d}"
    arrays = leaves.named(state)
    description = {
        "format": FORMAT,
        "update": update,
        "milestone": milestone,
        "arrays": {name: leaves.describe(leaf) for name, leaf in arrays.items()},
        "metadata": dict(metadata),
    }
    with files.explained("save the checkpoint", path):
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        with files.new_folder(path) as new:
            _write_arrays(new / "state", {n: leaves.to_host(a) for n, a in arrays.items()})
            files.write_json(new / "metadata.json", description)
            (new / _DIGESTS).write_text(_digests(new), encoding="utf-8")
        _drop_old(folder, update)
    return path


def updates(folder: Path) -> list[int]:
    """The updates that have a checkpoint in `folder`, oldest first; none when it is missing."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def latest(folder: Path) -> int | None:
    """The update of the newest checkpoint, damaged or not; None when there is none."""
    return max(updates(folder), default=None)


def digest(folder: Path, update: int) -> str:
    """SHA-256 over the digests of a checkpoint's files: a name for what it holds.

    Raises:
        InputError: there is no such checkpoint.
    """
    path = folder / f"{update:09d}" / _DIGESTS
    with files.explained("read", path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def restore(folder: Path, like: State, update: int | None = None) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint.

    Without `update`, a newest checkpoint that is damaged costs only the work since the one
    before: the newest intact one is restored, with a `DamagedCheckpointWarning`.

    Args:
        folder: where `save` put it.
        like: a pytree built from the same configuration; its arrays (or
            `jax.ShapeDtypeStruct`s) give names, shapes and devices, and all that is no array.
        update: which checkpoint; the newest intact one when None.

    Returns:
        The state, and the metadata with `update` and `milestone` in it.

    Raises:
        InputError: there is no such checkpoint, it is damaged, all are, or it holds another
            training state than `like`.
    """
    found = updates(folder)
    if not found:
        raise InputError(f"There is no checkpoint in {folder}: start the training anew.")
    if update is not None:
        if update not in found:
            raise InputError(
                f"There is no checkpoint of update {update} in {folder}: choose one of "
                f"{', '.join(map(str, found))}."
            )
        found = [update]
    damaged: list[Path] = []
    for number in reversed(found):
        path = folder / f"{number:09d}"
        try:
            description = _verified(path)
        except _DamagedError:
            damaged.append(path)
            continue
        _check_matches(description, like, path)
        values = _read_arrays(path / "state", like)
        if damaged:
            warnings.warn(
                f"{_listed(damaged)} damaged (the content does not match its digests); went back "
                f"to the intact checkpoint of update {number}.",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
        metadata = {
            **description["metadata"],
            "update": description["update"],
            "milestone": description["milestone"],
        }
        return leaves.fill(like, values), metadata
    others = [number for number in updates(folder) if number not in found]
    advice = (
        f"restore another one ({', '.join(map(str, others))})"
        if others
        else "restore the folder from a copy or start the training anew"
    )
    raise InputError(
        f"{_listed(damaged)} damaged (the content does not match its digests): {advice}."
    )


class _DamagedError(Exception):
    """The checkpoint's files are not the ones that were saved."""


def _listed(paths: list[Path]) -> str:
    if len(paths) == 1:
        return f"The checkpoint {paths[0]} is"
    return f"The checkpoints {', '.join(map(str, paths))} are"


def _digests(folder: Path) -> str:
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == _DIGESTS and path.parent == folder:
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _verified(path: Path) -> dict[str, Any]:
    """The description of an intact checkpoint."""
    try:
        with files.explained("read", path):
            if (path / _DIGESTS).read_bytes() != _digests(path).encode():
                raise _DamagedError
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError | IsADirectoryError):
            raise _DamagedError from error
        raise
    description = files.read_json(path / "metadata.json")
    if description.get("format") != FORMAT:
        raise InputError(
            f"The checkpoint {path} has format {description.get('format')!r} and this version "
            f"reads format {FORMAT}: use the version of sorl that wrote it."
        )
    return description


def _check_matches(description: dict[str, Any], like: Any, path: Path) -> None:
    found = leaves.differences(description["arrays"], like)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(
            f"The checkpoint {path} holds another training state than this configuration makes: "
            f"{found[0]}{more}; use the settings it was trained with, or start a new run."
        )


def _drop_old(folder: Path, update: int) -> None:
    earlier = [number for number in updates(folder) if number <= update]
    for number in updates(folder):
        path = folder / f"{number:09d}"
        if number > update or (number not in earlier[-KEPT:] and not _is_milestone(path)):
            files.remove_folder(path)


def _is_milestone(path: Path) -> bool:
    """Whether to keep `path` for ever; when that cannot be read any more, keep it."""
    try:
        return files.read_json(path / "metadata.json").get("milestone") is not False
    except InputError:
        return True


def _write_arrays(path: Path, values: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    # Orbax refuses arrays without entries; their shape in metadata.json says all about them.
    values = {name: value for name, value in values.items() if value.size}
    if not values:
        return
    _check_room(path.parent, sum(value.nbytes for value in values.values()))
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(values))
    except OSError:
        raise
    except Exception as error:  # the store below orbax has no exception type of its own
        raise _as_os_error(error, path) from error


def _check_room(folder: Path, size: int) -> None:
    """Raise `OSError` unless the disk has room for `size` bytes, by reserving it for a moment.

    Orbax would notice too, but only half-way, and its store then prints a traceback for every
    write that is still under way, to the terminal and past any handler.
    """
    try:
        reserve = os.posix_fallocate
    except AttributeError:  # macOS has no such call
        return
    path = folder / "room"
    try:
        with path.open("wb") as file:
            reserve(file.fileno(), 0, max(size, 1))
    finally:
        path.unlink(missing_ok=True)


def _read_arrays(path: Path, like: Any) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    wanted = leaves.named(like)
    stored = {
        name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted if wanted[name].size
    }
    values = {
        name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items() if not leaf.size
    }
    if not stored:
        return values
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arguments = ocp.args.PyTreeRestore(restore_args=stored)
            return values | checkpointer.restore(path.absolute(), args=arguments)
    except Exception as error:  # as in `_write_arrays`
        raise InputError(
            f"The checkpoint {path.parent} is intact but the installed orbax-checkpoint cannot "
            f"read it ({_first_line(error)}): install the versions named in the run's config.json."
        ) from error


def _as_os_error(error: Exception, path: Path) -> OSError:
    """The reason that orbax or its store gives as text, as the error it stands for."""
    text = str(error).lower()
    for words, number in (
        ("no space left", errno.ENOSPC),
        ("file too large", errno.EFBIG),
        ("quota exceeded", errno.EDQUOT),
        ("permission denied", errno.EACCES),
        ("read-only file system", errno.EROFS),
    ):
        if words in text:
            return OSError(number, words, str(path))
    return OSError(None, _first_line(error), str(path))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence orbax's log: its ways of working, and errors that it raises as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
