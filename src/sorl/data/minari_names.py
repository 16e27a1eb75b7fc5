"""Names of Minari's data sets: written `minari:NAME`, looked up on this machine.

    minari:D4RL/pen/human-v2    exactly this one
    minari:D4RL/pen/human       its newest version here
    minari:antmaze-umaze-v2     a name of D4RL: the newest version here of Minari's port of it

Data lie where Minari keeps them: in `MINARI_DATASETS_PATH`, else in `~/.minari/datasets`. Nothing
is downloaded; `minari download NAME` does that. No JAX here: worker processes need these names too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sorl.errors import InputError

SCHEME = "minari:"

_D4RL = (
    (
        re.compile(
            r"antmaze-(umaze|umaze-diverse|medium-play|medium-diverse|large-play|large-diverse)"
            r"(?:-v[0-9]+)?"
        ),
        r"D4RL/antmaze/\1",
    ),
    (
        re.compile(r"(pen|door|hammer|relocate)-(human|cloned|expert)(?:-v[0-9]+)?"),
        r"D4RL/\1/\2",
    ),
)


def folder() -> Path:
    """Where Minari keeps its data sets."""
    own = os.environ.get("MINARI_DATASETS_PATH")
    return Path(own) if own is not None else Path.home() / ".minari" / "datasets"


def resolve(name: str) -> str:
    """The full name of a data set that is on this machine.

    Args:
        name: with or without `minari:` before it.

    Raises:
        InputError: there is no such data set here.
    """
    name = name.removeprefix(SCHEME).strip("/")
    for pattern, port in _D4RL:
        if match := pattern.fullmatch(name):
            name = match.expand(port)
    if (folder() / name / "data").is_dir():
        return name
    parent, _, short = name.rpartition("/")
    home = folder() / parent
    versions: dict[int, str] = {}
    if short and home.is_dir():
        for entry in home.iterdir():
            match = re.fullmatch(rf"{re.escape(short)}-v([0-9]+)", entry.name)
            if match and (entry / "data").is_dir():
                versions[int(match[1])] = f"{parent}/{entry.name}" if parent else entry.name
    if not versions:
        raise InputError(
            f"There is no Minari data set {name!r} in {folder()}: get it with `minari download "
            f"NAME` (`minari list remote` tells the names), or set MINARI_DATASETS_PATH."
        )
    return versions[max(versions)]


def open_minari(name: str) -> Any:
    """The `minari.MinariDataset` of that name, see `resolve`.

    Raises:
        InputError: Minari is not installed, there is no such data set, or it is damaged.
    """
    try:
        import minari
    except ImportError as error:
        raise InputError(
            f"Minari's data sets need a package that is not installed ({error}): pip install "
            "'sorl[minari]'."
        ) from error
    full = resolve(name)
    try:
        return minari.load_dataset(full)
    except Exception as error:  # Minari raises whatever its storage does
        raise InputError(
            f"The Minari data set {full} in {folder()} cannot be read ({_first_line(error)}): "
            "download it anew."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".")[:160] if lines else type(error).__name__
