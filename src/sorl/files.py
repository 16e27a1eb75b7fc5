"""Files and folders that appear whole or not at all, and clear sentences when they cannot.

Everything is written beside its final name, forced to the disk and then renamed, so a reader,
a full disk or a `kill -9` never meets half of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sorl.errors import InputError

_SAVING = ".saving-"
_REMOVING = ".removing-"
_REPLACED = ".replaced-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing what was there in one step.

    Raises:
        InputError: the disk is full, or writing is not permitted; the old file is untouched.
    """
    temporary = path.with_name(f"{_SAVING}{path.name}")
    with explained("write", path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, in one step; errors as in `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as readable JSON, in one step; errors as in `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: `path` is missing, unreadable, or holds anything but a JSON object.
    """
    with explained("read", path):
        content = path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: it is not valid JSON ({error}); restore it from a copy."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it must hold a JSON object, restore it from a copy.")
    return value


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends it becomes `path`, whole.

    An earlier `path` is replaced. When anything fails before the new folder has its name, it
    vanishes and the earlier one stays; after a kill between the two, the next call or
    `remove_leftovers` brings the earlier one back. One process at a time may write a given `path`.
    """
    temporary, replaced = (path.with_name(prefix + path.name) for prefix in (_SAVING, _REPLACED))
    shutil.rmtree(temporary, ignore_errors=True)
    _bring_back(replaced, path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            (_sync_folder if entry.is_dir() else _sync_file)(entry)
        _sync_folder(temporary)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _bring_back(replaced, path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _bring_back(replaced: Path, path: Path) -> None:
    """Give a folder that was to be replaced its name again, unless the new one has it."""
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        os.rename(replaced, path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill half-way leaves no half of it under its name."""
    removed = path.with_name(_REMOVING + path.name)
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(path, removed)
    shutil.rmtree(removed)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed in `folder`.

    A folder that it was about to replace is there again.
    """
    for replaced in folder.glob(f"{_REPLACED}*"):
        _bring_back(replaced, folder / replaced.name.removeprefix(_REPLACED))
    for prefix in (_SAVING, _REMOVING):
        for leftover in folder.glob(f"{prefix}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into one sentence about `doing` something to `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(_sentence(error, doing, path)) from error


def _sentence(error: OSError, doing: str, path: Path) -> str:
    if error.errno in _FULL:
        return (
            f"Cannot {doing} {path}: the disk is full; free some space and try again, "
            "what was saved before is untouched."
        )
    if error.errno in _FORBIDDEN:
        return f"Cannot {doing} {path}: permission is missing; change it or choose another folder."
    if error.errno in _TOO_MANY:
        return (
            f"Cannot {doing} {path}: too many files are open; allow more of them by `ulimit -n` "
            "and try again."
        )
    if error.errno == errno.ENOENT and doing == "read":
        return f"There is no {path}: check the path."
    return f"Cannot {doing} {path}: {error.strerror or error}; check the path."


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
