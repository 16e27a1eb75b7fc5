"""The hidden folder beside the output where finished episodes wait for the others."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sorl.data.generate.archive import write_atomically
from sorl.errors import InputError


@contextmanager
def open_parts(path: Path, settings: Mapping[str, int | str]) -> Iterator[None]:
    """Create the folder, or take up the one that an interrupted run left, and hold it.

    Raises:
        InputError: that run had other settings, so that its episodes belong to another set; or
            another process is at work in the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    with hold(path, f"Another process is generating into {path}"):
        _settle(path, settings)
        yield


@contextmanager
def hold(path: Path, otherwise: str) -> Iterator[None]:
    """Hold the folder `path` for this process alone.

    Raises:
        InputError: another process holds it; `otherwise` begins the sentence.
    """
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{otherwise}: wait for it, or choose another folder for the output."
            ) from None
        yield


def remove_parts(path: Path) -> None:
    """Remove the folder and every episode in it."""
    shutil.rmtree(path)


def _settle(path: Path, settings: Mapping[str, int | str]) -> None:
    """Write down the settings, or compare them with those that are written down."""
    file = path / "settings.json"
    if not file.exists():
        text = json.dumps(dict(settings), indent=2)
        write_atomically(file, lambda target: target.write(text.encode()))
        return
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        found = {}
    differences = [
        f"{key} {found.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted({*found, *settings})
        if found.get(key) != settings.get(key)
    ]
    if differences:
        raise InputError(
            f"{path} holds the episodes of an interrupted run with other settings "
            f"({'; '.join(differences)}): repeat that run to finish it, or remove the folder."
        )
